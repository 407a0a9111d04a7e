//! Sizes as people write them.

use backlane_client::MEMORY_BYTES_MIN;
use backlane_net::LIMIT_BYTES_MIN;
use serde::{Deserialize, Deserializer, de::Error};

/// Parses `512`, `64K`, `256M`, `1G`, `2T`, also with `iB` after the letter: powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is not a size such as 256M or 1G"))?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("`{unit}` is not one of K, M, G, T")),
    };
    match number.checked_shl(shift).map(|n| (n, n >> shift)) {
        Some((size, back)) if back == number && size > 0 => Ok(size),
        Some((0, _)) => Err("a size of nothing".to_owned()),
        _ => Err(format!("`{text}` is too large")),
    }
}

/// Parses bytes a second.
pub(crate) fn parse_limit(text: &str) -> Result<u64, String> {
    let limit = parse_size(text)?;
    match limit >= LIMIT_BYTES_MIN {
        true => Ok(limit),
        false => Err(format!("{}K is the least", LIMIT_BYTES_MIN >> 10)),
    }
}

/// Parses what a backup may take of memory.
pub(crate) fn parse_memory(text: &str) -> Result<u64, String> {
    let memory = parse_size(text)?;
    match memory >= MEMORY_BYTES_MIN {
        true => Ok(memory),
        false => Err(format!("{}M is the least", MEMORY_BYTES_MIN >> 20)),
    }
}

fn read<'de, D: Deserializer<'de>>(
    from: D,
    parse: fn(&str) -> Result<u64, String>,
) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).map(Some).map_err(D::Error::custom)
}

/// What a backup may take of memory, in a configuration file.
pub(crate) mod memory {
    pub(crate) use super::limit::serialize;
    use serde::Deserializer;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        super::read(from, super::parse_memory)
    }
}

/// A limit in a configuration file.
pub(crate) mod limit {
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(limit: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(limit) => to.collect_str(limit),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        super::read(from, super::parse_limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_never_wrap() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("64K"), Ok(64 << 10));
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("1 g"), Ok(1 << 30));
        for bad in [
            "",
            "G",
            "-1",
            "1X",
            "0",
            "99999999999T",
            "18446744073709551616",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_no_smaller_than_what_keeps_a_route_alive() {
        assert_eq!(parse_limit("128K"), Ok(128 << 10));
        assert_eq!(parse_limit("127K"), Err("128K is the least".to_owned()));
    }
}
