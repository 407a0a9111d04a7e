//! A seeded simulator for storage sockets: faulty devices, crashes, checkers.
