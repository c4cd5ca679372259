//! Walks over scattered memory.

/// Calls `f` with runs of `a` and `b` that lie at the same place of both, until one of them ends. Returns the bytes walked.
pub(crate) fn each_run<'a, 'b>(
    a: impl IntoIterator<Item = &'a mut [u8]>,
    b: impl IntoIterator<Item = &'b [u8]>,
    mut f: impl FnMut(&mut [u8], &[u8]),
) -> usize {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let (mut x, mut y): (&mut [u8], &[u8]) = (&mut [], &[]);
    let mut walked = 0;
    loop {
        while x.is_empty() {
            let Some(next) = a.next() else { return walked };
            x = next;
        }
        while y.is_empty() {
            let Some(next) = b.next() else { return walked };
            y = next;
        }
        let n = x.len().min(y.len());
        let (now, rest) = x.split_at_mut(n);
        f(now, &y[..n]);
        (x, y) = (rest, &y[n..]);
        walked += n;
    }
}

/// As [`each_run`], of two that are only read. `f` says whether to go on.
pub(crate) fn each_pair<'a, 'b>(
    a: impl IntoIterator<Item = &'a [u8]>,
    b: impl IntoIterator<Item = &'b [u8]>,
    mut f: impl FnMut(&[u8], &[u8]) -> bool,
) -> usize {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let (mut x, mut y): (&[u8], &[u8]) = (&[], &[]);
    let mut walked = 0;
    loop {
        while x.is_empty() {
            let Some(next) = a.next() else { return walked };
            x = next;
        }
        while y.is_empty() {
            let Some(next) = b.next() else { return walked };
            y = next;
        }
        let n = x.len().min(y.len());
        let go_on = f(&x[..n], &y[..n]);
        (x, y) = (&x[n..], &y[n..]);
        walked += n;
        if !go_on {
            return walked;
        }
    }
}
