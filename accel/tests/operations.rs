//! Who does which operation, and what is counted.

use longshore_accel::erasure::{Codec, ErasureError, Kernel, MatrixKind};
use longshore_accel::{Accel, AssignError, Capability, Engine, Operation};
use std::sync::Arc;

const CHECK: &[u8] = b"123456789";

#[test]
fn what_was_done_is_counted_also_after_its_core_is_gone() {
    let accel = Accel::default();
    let (one, two) = (accel.channel(), accel.channel());
    one.crc32c(0, [CHECK, CHECK]);
    two.crc32c(0, [CHECK]);
    two.count_failed(Operation::Encrypt);
    drop(two);
    let s = accel.stats()[Operation::Crc32c as usize];
    assert_eq!((s.executed, s.failed, s.bytes), (2, 0, 27));
    assert_eq!(accel.stats()[Operation::Encrypt as usize].failed, 1);
}

/// Says what a BlueField-3 can do: it decompresses, but does not compress, and knows nothing of zstd.
struct Card;

impl Engine for Card {
    fn name(&self) -> &'static str {
        "card"
    }

    fn capabilities(&self) -> Vec<Capability> {
        let decompress = Capability {
            operation: Operation::Decompress,
            algorithms: &["deflate", "lz4"],
            limits: &[("job_max_bytes", 2 << 20)],
            hardware: true,
            implementation: "card",
        };
        vec![
            decompress.clone(),
            Capability { operation: Operation::Crc32c, algorithms: &[], limits: &[], ..decompress },
        ]
    }

    fn crc32c(&self, _: u32, _: &[u8]) -> u32 {
        0xca2d
    }
}

#[test]
fn operations_go_to_the_engine_that_they_are_assigned_to_until_the_start() {
    let accel = Accel::new(vec![Arc::new(Card)]);
    let no = accel.assign(Operation::Crc32c, "gpu").unwrap_err();
    assert_eq!(no, AssignError::NoSuchEngine("gpu".into(), vec!["software", "card"]));
    assert_eq!(no.to_string(), "no module 'gpu'; there are: software, card");
    assert_eq!(accel.assign(Operation::Compress, "card"), Err(AssignError::NotDone("card", Operation::Compress)));
    accel.assign(Operation::Copy, "software").unwrap();
    accel.assign(Operation::Copy, "software").unwrap();
    assert_eq!(accel.assigned(), [(Operation::Copy, "software")]);
    accel.start();
    assert_eq!(accel.assign(Operation::Crc32c, "software"), Err(AssignError::Started));
    let engine = |op| accel.engine(op).map(|engine| engine.name());
    assert_eq!(engine(Operation::Crc32c), Some("card"));
    assert_eq!(engine(Operation::Decompress), Some("card"));
    assert_eq!(engine(Operation::Encrypt), Some("software"));
    assert_eq!(engine(Operation::Compress), None, "nobody does it");
    assert_eq!(accel.channel().crc32c(0, [CHECK]), 0xca2d);

    let accel = Accel::new(vec![Arc::new(Card)]);
    accel.assign(Operation::Crc32c, "software").unwrap();
    assert_eq!(accel.channel().crc32c(0, [CHECK]), 0xe306_9283);
}

#[test]
fn names_of_operations_lead_back_to_them() {
    for op in Operation::ALL {
        assert_eq!(Operation::by_name(op.name()), Some(*op));
    }
    assert_eq!(Operation::by_name("teleport"), None);
}

/// Does what the software engine does, on the same processor.
struct Other;

impl Engine for Other {
    fn name(&self) -> &'static str {
        "other"
    }

    fn capabilities(&self) -> Vec<Capability> {
        [Operation::EcEncode, Operation::Crc32c]
            .map(|operation| Capability {
                operation,
                algorithms: &[],
                limits: &[],
                hardware: false,
                implementation: "other",
            })
            .into()
    }

    fn codec(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Codec, ErasureError> {
        Codec::with_kernel(kind, data, parity, Kernel::Portable)
    }
}

#[test]
fn an_engine_without_a_device_is_used_only_for_what_it_is_assigned() {
    let accel = Accel::new(vec![Arc::new(Other)]);
    accel.assign(Operation::EcEncode, "other").unwrap();
    let engine = |op| accel.engine(op).map(|engine| engine.name());
    assert_eq!((engine(Operation::EcEncode), engine(Operation::Crc32c)), (Some("other"), Some("software")));
    let coder = accel.channel().coder(MatrixKind::Cauchy, 4, 2).unwrap();
    assert_eq!(coder.kernel(Operation::EcEncode), Some(Kernel::Portable));
    assert_eq!(coder.kernel(Operation::EcDecode), Some(Kernel::best()));
    assert_eq!(coder.kernel(Operation::EcUpdate), Some(Kernel::best()));
}

#[test]
fn a_coder_counts_what_it_did_also_after_its_channel_is_gone() {
    let accel = Accel::default();
    let coder = accel.channel().coder(MatrixKind::Cauchy, 2, 1).unwrap();
    let (a, b, mut parity, mut rebuilt) = ([1; 8], [2; 8], [0; 8], [0; 8]);
    coder.encode(&[&a, &b], &mut [&mut parity]);
    coder.update(1, &[3; 8], &mut [&mut parity]);
    coder.decoder(&[1], &[0, 2]).unwrap().decode(&[&a, &parity], &mut [&mut rebuilt]);
    assert_eq!(rebuilt, [1; 8], "2 and what it was changed by");
    drop(coder);
    let all = accel.stats();
    let of = |op: Operation| (all[op as usize].executed, all[op as usize].bytes);
    assert_eq!(of(Operation::EcEncode), (1, 16));
    assert_eq!(of(Operation::EcUpdate), (1, 8));
    assert_eq!(of(Operation::EcDecode), (1, 16));
}
