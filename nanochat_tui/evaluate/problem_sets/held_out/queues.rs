//! Jobs that wait, and what becomes of them.

use std::collections::{BinaryHeap, HashMap, VecDeque};

/// What a job is: a number, how urgent it is, and the steps that it takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    pub urgency: u32,
    pub number: u32,
    pub steps: u32,
}

/// Returns the numbers of the jobs in the order in which they are done, the most urgent first.
pub fn by_urgency(jobs: Vec<Job>) -> Vec<u32> {
    let mut heap: BinaryHeap<Job> = jobs.into_iter().collect();
    let mut order = Vec::with_capacity(heap.len());
    while let Some(job) = heap.pop() {
        order.push(job.number);
    }
    order
}

/// Gives each waiting job some steps in turn, and returns the numbers in the order in which they end.
pub fn round_robin(jobs: &[(u32, u32)], slice: u32) -> Vec<u32> {
    let mut waiting: VecDeque<(u32, u32)> = jobs.iter().copied().collect();
    let mut ended = Vec::new();
    while let Some((number, left)) = waiting.pop_front() {
        if left <= slice {
            ended.push(number);
        } else {
            waiting.push_back((number, left - slice));
        }
    }
    ended
}

/// Orders tasks so that each comes after those it needs; None if they need each other in a circle.
pub fn ordered(count: usize, needs: &[(usize, usize)]) -> Option<Vec<usize>> {
    let mut missing = vec![0; count];
    let mut waits: HashMap<usize, Vec<usize>> = HashMap::new();
    for &(task, needed) in needs {
        missing[task] += 1;
        waits.entry(needed).or_default().push(task);
    }
    let mut ready: VecDeque<usize> = (0..count).filter(|&task| missing[task] == 0).collect();
    let mut order = Vec::new();
    while let Some(task) = ready.pop_front() {
        order.push(task);
        for &next in waits.get(&task).map_or(&[][..], |list| list) {
            missing[next] -= 1;
            if missing[next] == 0 {
                ready.push_back(next);
            }
        }
    }
    if order.len() == count { Some(order) } else { None }
}

/// Returns the mean of the newest `window` values after each value.
pub fn moving_mean(values: &[f64], window: usize) -> Vec<f64> {
    let mut recent = VecDeque::with_capacity(window);
    let mut sum = 0.0;
    let mut means = Vec::with_capacity(values.len());
    for &value in values {
        recent.push_back(value);
        sum += value;
        if recent.len() > window {
            sum -= recent.pop_front().unwrap_or(0.0);
        }
        means.push(sum / recent.len() as f64);
    }
    means
}

/// Says after how many seconds to try again: doubled each time, at most `limit`.
pub fn delay(attempt: u32, first: u64, limit: u64) -> u64 {
    let factor = 1u64.checked_shl(attempt).unwrap_or(u64::MAX);
    let wanted = first.saturating_mul(factor);
    wanted.min(limit)
}

/// Splits work into batches whose sizes add up to at most `most` each, in order.
pub fn batches(sizes: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut batch = Vec::new();
    let mut filled = 0;
    for &size in sizes {
        if !batch.is_empty() && filled + size > most {
            found.push(std::mem::take(&mut batch));
            filled = 0;
        }
        batch.push(size);
        filled += size;
    }
    if !batch.is_empty() {
        found.push(batch);
    }
    found
}
