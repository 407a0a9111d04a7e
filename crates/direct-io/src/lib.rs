//! Block devices: direct I/O through io_uring or a thread pool, aligned buffers.
