//! Object service, enrolment and state of the Backlane server.
