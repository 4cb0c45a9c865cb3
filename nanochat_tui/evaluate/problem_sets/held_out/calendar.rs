//! Days, times of day and spans of time, without a library.

/// A date of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    pub year: i32,
    pub month: u32,
    pub day: u32,
}

/// Tells whether a year has 366 days.
pub fn is_leap_year(year: i32) -> bool {
    let by_four = year % 4 == 0;
    let by_hundred = year % 100 == 0;
    let by_four_hundred = year % 400 == 0;
    by_four && (!by_hundred || by_four_hundred)
}

/// Returns the number of days of a month, or None if there is no such month.
pub fn days_in_month(month: u32, leap: bool) -> Option<u32> {
    match month {
        2 if leap => Some(29),
        2 => Some(28),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Writes seconds as hours, minutes and seconds with two digits each.
pub fn clock(seconds: u32) -> String {
    let hours = seconds / 3600;
    let minutes = seconds % 3600 / 60;
    let rest = seconds % 60;
    format!("{:02}:{:02}:{:02}", hours, minutes, rest)
}

/// Reads a time of day such as `17:05` as minutes since midnight.
pub fn minutes_of_day(text: &str) -> Result<u32, String> {
    let (hours, minutes) = text.split_once(':').ok_or("there is no colon")?;
    let hours: u32 = hours.parse().map_err(|_| "the hour is no number")?;
    let minutes: u32 = minutes.parse().map_err(|_| "the minute is no number")?;
    if hours > 23 || minutes > 59 {
        return Err(format!("{} is no time of day", text));
    }
    Ok(hours * 60 + minutes)
}

/// Merges spans of time that touch or overlap; the spans come back in order.
pub fn merge_spans(spans: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut sorted = spans.to_vec();
    sorted.sort();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (start, end) in sorted {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// Returns the first gap of at least `length` minutes between busy spans in order, looked for from `from` on.
pub fn first_gap(busy: &[(u32, u32)], from: u32, length: u32) -> u32 {
    let mut free = from;
    for &(start, end) in busy {
        if start >= free + length {
            break;
        }
        free = free.max(end);
    }
    free
}
