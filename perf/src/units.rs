//! Sizes, core masks and times as people type them, and figures as people read them.

/// Parses a size: a number with an optional binary suffix (`4096`, `4k`, `128K`, `1M`, `64MiB`, `2g`).
///
/// # Errors
/// Says what is wrong with the text.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let t = text.trim();
    let digits = t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len());
    let number: u64 =
        t[..digits].parse().map_err(|_| format!("'{text}' is not a size: give bytes or a number with K, M, G or T"))?;
    let shift = match t[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("'{other}' in '{text}' is not a unit of size: use K, M, G or T (binary)")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' does not fit in 64 bits"))
}

/// [`parse_size`] for sizes that must not be 0 and fit in 32 bits.
///
/// # Errors
/// As [`parse_size`], and when the size is 0 or above 4 GiB - 1.
pub(crate) fn parse_size32(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_size(text)?) {
        Ok(0) => Err("must be greater than 0".into()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("'{text}' is more than 4 GiB")),
    }
}

/// Parses a set of CPUs: a hexadecimal mask (`0x3`, or `3` as in spdk_nvme_perf) or a list in brackets (`[0,2-4]`).
///
/// # Errors
/// Says what is wrong with the text, or that it names no CPU.
pub(crate) fn parse_cores(text: &str) -> Result<Vec<u32>, String> {
    let t = text.trim();
    let bad = || format!("'{text}' is not a core mask: use hexadecimal (0x3) or a list in brackets ([0,2-4])");
    let mut cores = Vec::new();
    if let Some(list) = t.strip_prefix('[') {
        for part in list.strip_suffix(']').ok_or_else(bad)?.split(',') {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            let (a, b): (u32, u32) = (a.trim().parse().map_err(|_| bad())?, b.trim().parse().map_err(|_| bad())?);
            if a > b || b > 4095 {
                return Err(bad());
            }
            cores.extend(a..=b);
        }
    } else {
        let hex = t.strip_prefix("0x").or_else(|| t.strip_prefix("0X")).unwrap_or(t);
        if hex.is_empty() || hex.len() > 1024 {
            return Err(bad());
        }
        for (i, c) in hex.chars().rev().enumerate() {
            let nibble = c.to_digit(16).ok_or_else(bad)?;
            cores.extend((0..4).filter(|b| nibble & (1 << b) != 0).map(|b| i as u32 * 4 + b));
        }
    }
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() { Err(format!("the core mask '{text}' names no core")) } else { Ok(cores) }
}

/// `1234567` as `1.23 M`, for reading.
pub(crate) fn si(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0} "),
    }
}

/// Bytes with the largest binary unit that divides them, for reading.
pub(crate) fn size(n: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if n >= 1 << shift && n.is_multiple_of(1 << shift) {
            return format!("{} {unit}", n >> shift);
        }
    }
    format!("{n} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes_and_refuse_everything_else() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for bad in ["", "k", "4x", "-1", "1.5k", "99999999999999999999", "16777216T"] {
            assert!(parse_size(bad).is_err(), "{bad} was taken");
        }
        assert!(parse_size32("0").is_err() && parse_size32("4G").is_err());
    }

    #[test]
    fn core_masks_are_hexadecimal_with_or_without_prefix_or_a_list() {
        assert_eq!(parse_cores("0x5"), Ok(vec![0, 2]));
        assert_eq!(parse_cores("10"), Ok(vec![4]));
        assert_eq!(parse_cores("[0,2-4]"), Ok(vec![0, 2, 3, 4]));
        assert_eq!(parse_cores("0x10000000000000000"), Ok(vec![64]));
        for bad in ["", "0x", "0x0", "[", "[]", "[3-1]", "xyz", "[0,99999]"] {
            assert!(parse_cores(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn figures_read_short() {
        assert_eq!(si(1_234_567.0), "1.23 M");
        assert_eq!(si(950.0), "950 ");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(5000), "5000 B");
    }
}
