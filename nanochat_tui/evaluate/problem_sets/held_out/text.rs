//! Small tasks on text.

use std::collections::{HashMap, HashSet};

/// Counts how often each word occurs, in lower case, punctuation taken away.
pub fn word_counts(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        if !word.is_empty() {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    counts
}

/// Breaks a text into lines of at most `width` characters, between words.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// Encodes runs of equal characters as the character and its count, as in `a3b1`.
pub fn run_lengths(text: &str) -> String {
    let mut encoded = String::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let mut count = 1;
        while characters.peek() == Some(&c) {
            characters.next();
            count += 1;
        }
        encoded.push(c);
        encoded.push_str(&count.to_string());
    }
    encoded
}

/// Turns a name such as `HttpServer` into `http_server`.
pub fn snake_case(name: &str) -> String {
    let mut result = String::with_capacity(name.len() + 4);
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            result.push('_');
        }
        result.extend(c.to_lowercase());
    }
    result
}

/// Returns the first character that stands only once in the text.
pub fn first_unique(text: &str) -> Option<char> {
    let mut once = HashSet::new();
    let mut more = HashSet::new();
    for c in text.chars() {
        if !once.insert(c) {
            more.insert(c);
        }
    }
    text.chars().find(|c| !more.contains(c))
}

/// Tells whether round, square and curly brackets close in the right order.
pub fn brackets_match(text: &str) -> bool {
    let mut open = Vec::new();
    for c in text.chars() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(c) => return false,
            _ => {}
        }
    }
    open.is_empty()
}
