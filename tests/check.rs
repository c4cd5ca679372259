//! `longshore check` on files: exit status and report.

use std::path::PathBuf;
use std::process::Command;

/// The members of the golden image of format 1, as files.
fn members(name: &str) -> (PathBuf, Vec<PathBuf>) {
    let dir = std::env::temp_dir().join(format!("longshore-check-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut members: Vec<Vec<u8>> = Vec::new();
    for line in include_str!("../bdev/src/ec/golden/format-1.txt").lines().filter(|l| !l.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap();
        if word == "member" {
            members.push(vec![0; rest.parse().unwrap()]);
            continue;
        }
        let at: usize = word.parse().unwrap();
        for (i, digits) in rest.as_bytes().chunks(2).enumerate() {
            members.last_mut().unwrap()[at + i] = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
    }
    let paths: Vec<_> = (0..members.len()).map(|i| dir.join(format!("member{i}"))).collect();
    for (path, bytes) in paths.iter().zip(&members) {
        std::fs::write(path, bytes).unwrap();
    }
    (dir, paths)
}

fn check(arguments: &[&PathBuf]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_longshore")).arg("check").args(arguments).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn the_exit_status_and_the_last_line_say_sound_degraded_damaged_or_no_array() {
    let (dir, m) = members("states");
    let all: Vec<&PathBuf> = m.iter().collect();
    let (code, text) = check(&all);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("array 'vol0' 6c6f6e67-7368-6f72-6500-000000000000: 2+1, strips of 4 KiB"), "{text}");
    assert!(text.contains("member1: slot 1, epoch 5 of writer 0123456789abcdef\n"), "{text}");
    assert!(text.contains("2 of 23 hold data: 2 agree, 0 have nothing to compare with, 0 are bad"), "{text}");
    assert!(text.ends_with("\nsound\n"), "{text}");

    let (code, text) = check(&all[..2]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("note: the member in slot 2 is missing"), "{text}");

    let (code, text) = check(&all[..1]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("1 members are in sync and there, 2 are needed; none in slots 1, 2"), "{text}");

    let mut bytes = std::fs::read(&m[0]).unwrap();
    bytes[167_936 + 9] ^= 1;
    std::fs::write(&m[0], &bytes).unwrap();
    let (code, text) = check(&all);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("DAMAGE: stripe 0: its strips do not agree"), "{text}");
    let option = PathBuf::from("--metadata-only");
    assert_eq!(check(&[&option, &m[0], &m[1], &m[2]]).0, Some(0));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_cannot_be_opened_or_is_in_use_is_named() {
    let (dir, m) = members("use");
    let nowhere = dir.join("nowhere");
    let (code, text) = check(&[&nowhere]);
    assert_eq!(code, Some(4));
    assert!(text.starts_with(&format!("longshore check: cannot open '{}': No such file", nowhere.display())), "{text}");
    let file = std::fs::File::open(&m[1]).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (code, text) = check(&[&m[0], &m[1]]);
    assert_eq!(code, Some(4));
    assert!(text.contains("member1' is being served by a daemon: stop it"), "{text}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_check_changes_nothing() {
    let (dir, m) = members("unchanged");
    let before: Vec<_> = m.iter().map(|p| std::fs::read(p).unwrap()).collect();
    check(&m.iter().collect::<Vec<_>>());
    for (path, before) in m.iter().zip(before) {
        assert!(std::fs::read(path).unwrap() == before, "{}", path.display());
    }
    std::fs::remove_dir_all(dir).unwrap();
}
