//! Fields of cells, rows of equal length.

/// Returns the grid turned by a quarter, clockwise.
pub fn turned(grid: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let height = grid.len();
    let width = grid.first().map_or(0, |row| row.len());
    let mut result = vec![vec![0; height]; width];
    for (y, row) in grid.iter().enumerate() {
        for (x, &cell) in row.iter().enumerate() {
            result[x][height - 1 - y] = cell;
        }
    }
    result
}

/// Counts the neighbours of a cell that are alive, corners included.
pub fn neighbours(grid: &[Vec<bool>], x: usize, y: usize) -> usize {
    let mut count = 0;
    for row in y.saturating_sub(1)..=(y + 1).min(grid.len() - 1) {
        for column in x.saturating_sub(1)..=(x + 1).min(grid[row].len() - 1) {
            if (column, row) != (x, y) && grid[row][column] {
                count += 1;
            }
        }
    }
    count
}

/// Fills the area of equal cells around a place with another value and returns how many cells changed.
pub fn flood_fill(grid: &mut [Vec<u8>], x: usize, y: usize, value: u8) -> usize {
    let old = grid[y][x];
    if old == value {
        return 0;
    }
    let mut changed = 0;
    let mut waiting = vec![(x, y)];
    while let Some((x, y)) = waiting.pop() {
        if grid[y][x] != old {
            continue;
        }
        grid[y][x] = value;
        changed += 1;
        if x > 0 {
            waiting.push((x - 1, y));
        }
        if y > 0 {
            waiting.push((x, y - 1));
        }
        if x + 1 < grid[y].len() {
            waiting.push((x + 1, y));
        }
        if y + 1 < grid.len() {
            waiting.push((x, y + 1));
        }
    }
    changed
}

/// Returns the sums of each row and of each column.
pub fn margins(grid: &[Vec<i32>]) -> (Vec<i32>, Vec<i32>) {
    let rows = grid.iter().map(|row| row.iter().sum()).collect();
    let mut columns = vec![0; grid.first().map_or(0, |row| row.len())];
    for row in grid {
        for (x, cell) in row.iter().enumerate() {
            columns[x] += cell;
        }
    }
    (rows, columns)
}

/// Finds the place of the largest cell; the first one where there are several.
pub fn largest_cell(grid: &[Vec<i32>]) -> Option<(usize, usize)> {
    let mut best = None;
    let mut highest = i32::MIN;
    for (y, row) in grid.iter().enumerate() {
        for (x, &cell) in row.iter().enumerate() {
            if best.is_none() || cell > highest {
                highest = cell;
                best = Some((x, y));
            }
        }
    }
    best
}

/// Draws a grid as lines of text, `#` for a cell that is set.
pub fn drawn(grid: &[Vec<bool>]) -> String {
    let mut text = String::new();
    for row in grid {
        for &cell in row {
            text.push(if cell { '#' } else { '.' });
        }
        text.push('\n');
    }
    text
}
