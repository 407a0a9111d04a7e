//! Storage sockets as pure code: layout, codec, member, connection and ring machines.
