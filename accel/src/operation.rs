//! The operations and their names.

macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What can be asked of an engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Operation { $($(#[$doc])* $variant,)* }

        impl Operation {
            /// All of them, in the order of SPDK's, then those that SPDK has not.
            pub const ALL: &[Operation] = &[$(Operation::$variant,)*];

            /// Name, as RPC clients know it.
            pub const fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name,)* }
            }
        }
    };
}

operations! {
    /// Copies memory.
    Copy = "copy",
    /// Fills memory with one byte.
    Fill = "fill",
    /// Copies to two places.
    Dualcast = "dualcast",
    /// Compares memory.
    Compare = "compare",
    /// CRC-32C.
    Crc32c = "crc32c",
    /// Copies and takes the CRC-32C.
    CopyCrc32c = "copy_crc32c",
    /// Compression.
    Compress = "compress",
    /// Decompression.
    Decompress = "decompress",
    /// Encryption.
    Encrypt = "encrypt",
    /// Decryption.
    Decrypt = "decrypt",
    /// Exclusive or of several sources.
    Xor = "xor",
    /// Checks protection information that lies between the data.
    DifVerify = "dif_verify",
    /// Checks it and takes it out.
    DifVerifyCopy = "dif_verify_copy",
    /// Makes it where there is room for it.
    DifGenerate = "dif_generate",
    /// Makes it and puts it in.
    DifGenerateCopy = "dif_generate_copy",
    /// Makes protection information that lies apart.
    DixGenerate = "dix_generate",
    /// Checks it.
    DixVerify = "dix_verify",
    /// CRC-64/NVME.
    Crc64Nvme = "crc64_nvme",
    /// CRC-16 of T10-DIF.
    Crc16T10Dif = "crc16_t10dif",
    /// Parity of an erasure code.
    EcEncode = "ec_encode",
    /// Lost chunks of an erasure code.
    EcDecode = "ec_decode",
    /// Change of the parity when one data chunk changes.
    EcUpdate = "ec_update",
}

impl Operation {
    /// How many there are.
    pub const COUNT: usize = Operation::ALL.len();

    /// The operation of that name.
    pub fn by_name(name: &str) -> Option<Operation> {
        Operation::ALL.iter().copied().find(|op| op.name() == name)
    }
}
