//! Little-endian fields at fixed offsets of a block.

use crate::types::{Block, Name};

pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        field.copy_from_slice(found);
    }
    field
}

pub(crate) fn take_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

pub(crate) fn take_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

pub(crate) fn take_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

pub(crate) fn take_name(bytes: &[u8], at: usize) -> Name {
    let field: [u8; Name::FIELD_BYTES] = take(bytes, at);
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
    Name::lossy(&String::from_utf8_lossy(text))
}

pub(crate) fn put(block: &mut Block, at: usize, field: &[u8]) {
    block.0[at..at + field.len()].copy_from_slice(field);
}

pub(crate) fn put_u16(block: &mut Block, at: usize, value: u16) {
    put(block, at, &value.to_le_bytes());
}

pub(crate) fn put_u32(block: &mut Block, at: usize, value: u32) {
    put(block, at, &value.to_le_bytes());
}

pub(crate) fn put_u64(block: &mut Block, at: usize, value: u64) {
    put(block, at, &value.to_le_bytes());
}

pub(crate) fn put_name(block: &mut Block, at: usize, name: &Name) {
    put(block, at, name.as_str().as_bytes());
}
