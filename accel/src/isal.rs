//! ISA-L as an engine.

use crate::engine::{Capability, Engine};
use crate::erasure::{Codec, ErasureError, Kernel, MatrixKind};
use crate::operation::Operation;
use crate::software::{ERASURE_LIMITS, MATRICES};

/// ISA-L's erasure code, which chooses its own instructions. In builds with the feature `isal`.
#[derive(Debug, Default)]
pub struct Isal;

impl Engine for Isal {
    fn name(&self) -> &'static str {
        "isal"
    }

    fn capabilities(&self) -> Vec<Capability> {
        let done = [Operation::EcEncode, Operation::EcDecode, Operation::EcUpdate];
        done.map(|operation| Capability {
            operation,
            algorithms: MATRICES,
            limits: ERASURE_LIMITS,
            hardware: false,
            implementation: "ISA-L",
        })
        .into()
    }

    fn codec(&self, kind: MatrixKind, data: usize, parity: usize) -> Result<Codec, ErasureError> {
        Codec::with_kernel(kind, data, parity, Kernel::Isal)
    }
}
