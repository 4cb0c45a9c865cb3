//! Numbers as bytes and bytes as text.

/// Writes bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push_str(&format!("{:02x}", byte));
    }
    text
}

/// Reads hexadecimal digits; None where their number is odd or one is no digit.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 != 0 || !text.is_ascii() {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for at in (0..text.len()).step_by(2) {
        let byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        bytes.push(byte);
    }
    Some(bytes)
}

/// Appends a number in groups of seven bits, the lowest first; the top bit says that more follow.
pub fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number in groups of seven bits from the beginning of some bytes, with how many it took.
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    let mut shift = 0;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
        shift += 7;
    }
    None
}

/// Returns the check sum of Adler: two sums modulo 65521, the second one above the first.
pub fn adler32(bytes: &[u8]) -> u32 {
    let mut low = 1u32;
    let mut high = 0u32;
    for &byte in bytes {
        low = (low + u32::from(byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    (high << 16) | low
}

/// Returns the greatest common divisor of two numbers.
pub fn common_divisor(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        let rest = a % b;
        a = b;
        b = rest;
    }
    a
}

/// Returns the prime factors of a number in rising order.
pub fn prime_factors(number: u64) -> Vec<u64> {
    let mut left = number;
    let mut factors = Vec::new();
    let mut candidate = 2;
    while candidate * candidate <= left {
        while left % candidate == 0 {
            factors.push(candidate);
            left /= candidate;
        }
        candidate += 1;
    }
    if left > 1 {
        factors.push(left);
    }
    factors
}
