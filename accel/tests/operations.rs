//! Who does which operation, and what is counted.

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
    assert_eq!(accel.engine(Operation::Crc32c).name(), "card");
    assert_eq!(accel.engine(Operation::Decompress).name(), "card");
    assert_eq!(accel.engine(Operation::Encrypt).name(), "software");
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
