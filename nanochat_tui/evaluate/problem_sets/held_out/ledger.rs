//! Amounts in cents, entries of a ledger, and what follows from them.

use std::collections::BTreeMap;

/// One booking: a day of the year, an account, and an amount in cents.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub day: u16,
    pub account: String,
    pub cents: i64,
}

/// Adds up the amounts of each account.
pub fn balances(entries: &[Entry]) -> BTreeMap<String, i64> {
    let mut totals = BTreeMap::new();
    for entry in entries {
        *totals.entry(entry.account.clone()).or_insert(0) += entry.cents;
    }
    totals
}

/// Returns the largest fall of the balance from any day to a later one.
pub fn largest_fall(entries: &[Entry]) -> i64 {
    let mut balance = 0;
    let mut highest = 0;
    let mut fall = 0;
    for entry in entries {
        balance += entry.cents;
        highest = highest.max(balance);
        fall = fall.max(highest - balance);
    }
    fall
}

/// Writes an amount with two decimals, the sign in front.
pub fn format_cents(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let value = cents.unsigned_abs();
    format!("{}{}.{:02}", sign, value / 100, value % 100)
}

/// Reads an amount such as `-12.50`; None for anything else.
pub fn parse_cents(text: &str) -> Option<i64> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = rest.split_once('.')?;
    if part.len() != 2 || whole.is_empty() {
        return None;
    }
    let cents = whole.parse::<i64>().ok()?.checked_mul(100)? + part.parse::<i64>().ok()?;
    Some(if negative { -cents } else { cents })
}

/// Shares an amount among so many people; the first ones get a cent more where it does not divide evenly.
pub fn share_out(cents: u64, people: usize) -> Vec<u64> {
    if people == 0 {
        return Vec::new();
    }
    let each = cents / people as u64;
    let rest = (cents % people as u64) as usize;
    (0..people).map(|i| if i < rest { each + 1 } else { each }).collect()
}

/// Returns what a sum has grown to after some years with yearly interest in percent, rounded down each year.
pub fn with_interest(cents: u64, percent: u64, years: u32) -> u64 {
    let mut sum = cents;
    for _ in 0..years {
        sum += sum * percent / 100;
    }
    sum
}
