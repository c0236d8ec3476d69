//! Neighbours: rows whose `seq` follow each other. What is done alike to all of them is one statement.

/// From `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: i64,
    pub(crate) last: i64,
}

impl Run {
    pub(crate) fn len(self) -> usize {
        usize::try_from(self.last - self.first + 1).unwrap_or(0)
    }
}

/// Cuts a list that is in order of `seq` into runs of neighbours that are also `alike`.
pub(crate) fn runs<'a, T>(
    rows: &'a [T],
    seq: impl Fn(&T) -> i64 + 'a,
    alike: impl Fn(&T, &T) -> bool + 'a,
) -> impl Iterator<Item = (Run, &'a [T])> {
    let neighbours = {
        let seq = &seq;
        move |one: &T, next: &T| seq(next) == seq(one) + 1 && alike(one, next)
    };
    let chunks: Vec<&'a [T]> = rows.chunk_by(neighbours).collect();
    chunks.into_iter().map(move |chunk| {
        let run = Run { first: seq(&chunk[0]), last: seq(&chunk[chunk.len() - 1]) };
        (run, chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_a_number_is_missing_or_a_row_is_unlike() {
        let rows = [(1, 'a'), (2, 'a'), (4, 'a'), (5, 'b'), (6, 'b')];
        let found: Vec<_> = runs(&rows, |row| row.0, |one, next| one.1 == next.1)
            .map(|(run, rows)| (run.first, run.last, rows.len()))
            .collect();
        assert_eq!(found, [(1, 2, 2), (4, 4, 1), (5, 6, 2)]);
        assert_eq!(Run { first: 4, last: 6 }.len(), 3);
    }
}
