//! Backup and restore pipelines and jobs.
