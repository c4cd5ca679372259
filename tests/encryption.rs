//! An encrypting device in a daemon: data survives a kill, and what the key is made of is nowhere to be found.

mod served;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use served::{Place, text};

/// Digits that occur nowhere else.
const KEY: &str = "c3f1d70a4b9e28655d1e90b7a2f46c833b7e05d9c81f62a4e7930bd54f6a1c28";
const KEY2: &str = "7a60e4c9135bd28f06f9a31d8ce5724bb19d40f7632ec85a94d70e6bf1385ca2";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("digits")).collect()
}

fn key_file(path: &Path) {
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(path).expect("a key file");
    file.write_all(&[bytes(KEY), bytes(KEY2)].concat()).expect("a key");
}

fn call(place: &Place, method: &str, params: Value) -> Value {
    let mut s = UnixStream::connect(place.dir.join("rpc.sock")).expect("the RPC socket");
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    s.write_all(request.to_string().as_bytes()).expect("a request");
    let mut answers = serde_json::Deserializer::from_reader(s).into_iter::<Value>();
    answers.next().expect("an answer").expect("JSON")
}

/// Where `needle` lies in the memory of process `pid` that a core dump would hold.
fn found(pid: u32, needle: &[u8]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps of the daemon");
    let mem = File::open(format!("/proc/{pid}/mem")).expect("memory of the daemon");
    let mut out = Vec::new();
    let mut mapping: Option<(u64, u64, String)> = None;
    for line in maps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        if let Some((Ok(from), Ok(to))) = range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16))) {
            mapping = line.contains(" rw-p ").then(|| (from, to, line.to_owned()));
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else { continue };
        let Some((from, to, name)) = mapping.take() else { continue };
        if flags.split_whitespace().any(|flag| flag == "dd") {
            continue;
        }
        let mut page = vec![0; 1 << 20];
        // With an overlap, so that nothing hides on a boundary.
        let mut at = from;
        while at < to {
            let n = page.len().min((to - at) as usize);
            if let Ok(n) = mem.read_at(&mut page[..n], at)
                && let Some(i) = page[..n].windows(needle.len()).position(|w| w == needle)
            {
                out.push(format!("{:#x} in {name}", at + i as u64));
            }
            at += if n < page.len() { n } else { n - needle.len() } as u64;
        }
    }
    out
}

#[test]
fn what_was_written_encrypted_is_read_after_a_kill_with_the_key_from_its_file() {
    let bdevs = r#"{"method": "accel_crypto_key_create", "params": {"name": "k", "cipher": "AES_XTS", "key_file": "DIR/key"}},
        {"method": "bdev_uring_create", "params": {"name": "F", "filename": "DIR/disk", "block_size": 4096}},
        {"method": "bdev_crypto_create", "params": {"name": "C", "base_bdev_name": "F", "key_name": "k"}}"#;
    let place = Place::new("encryption", bdevs, &["C"]);
    key_file(&place.dir.join("key"));
    std::fs::write(place.dir.join("disk"), vec![0; 16 << 20]).expect("a file to serve");
    let daemon = place.daemon();
    let journal = place.dir.join("journal");
    let load = "-q 16 -o 16K -w verify -t 1 --fua 10 --flush-every 32 --seed 5 --verify-journal";
    let out = place.perf("", load).arg(&journal).output().expect("the load runs");
    assert!(out.status.success(), "{}", text(&out));
    drop(daemon); // SIGKILL
    let daemon = place.daemon();
    let out = place.perf("", "-q 32 --json --verify-check").arg(&journal).output().expect("the check runs");
    assert!(out.status.success(), "{}", text(&out));
    let stats = call(&place, "accel_get_stats", Value::Null)["result"]["operations"].clone();
    let decrypted = stats.as_array().expect("operations").iter().find(|o| o["opcode"] == "decrypt");
    assert!(decrypted.is_some_and(|o| o["num_bytes"].as_u64() > Some(0)), "{stats}");
    let material = [bytes(KEY), bytes(KEY2)].concat();
    for half in material.chunks(32) {
        assert_eq!(found(daemon.pid(), half), [""; 0]);
    }
}

#[test]
fn a_key_given_as_digits_leaves_none_in_memory_that_is_dumped() {
    let bdevs = r#"{"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": 64, "block_size": 512}}"#;
    let place = Place::new("encryption-digits", bdevs, &[]);
    let daemon = place.daemon();
    let pid = daemon.pid();
    let level = json!({"level": "DEBUG"});
    assert_eq!(call(&place, "log_set_print_level", level)["result"], true);
    let key = json!({"name": "k", "cipher": "AES_XTS", "key": KEY, "key2": KEY2});
    assert_eq!(call(&place, "accel_crypto_key_create", key.clone())["result"], true);
    // One that is refused leaves nothing either.
    assert_eq!(call(&place, "accel_crypto_key_create", key)["error"]["code"], -32602);
    let make = json!({"name": "C", "base_bdev_name": "M", "key_name": "k"});
    assert_eq!(call(&place, "bdev_crypto_create", make)["result"], "C");
    for method in ["accel_crypto_keys_get", "bdev_get_bdevs"] {
        let answer = call(&place, method, Value::Null).to_string();
        assert!(!answer.contains(&KEY[..16]) && !answer.contains(&KEY2[..16]), "{answer}");
    }
    for digits in [KEY, KEY2] {
        assert_eq!(found(pid, &digits.as_bytes()[..32]), [""; 0], "text");
        assert_eq!(found(pid, &bytes(digits)), [""; 0], "bytes");
    }
    // What the search would find, it finds.
    assert!(!found(pid, b"accel_crypto_key_create").is_empty());
}
