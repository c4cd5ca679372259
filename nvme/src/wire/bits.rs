//! Declares a register or Dword as a newtype with one getter and one `with_` setter per bit field.

/// Fields are given as `getter, setter: lowest bit, width;`. A setter drops bits of the value beyond the width.
macro_rules! bits {
    ($(#[$meta:meta])* $name:ident: $repr:ty {
        $($(#[$fmeta:meta])* $get:ident, $with:ident: $lo:literal, $len:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $repr);

        impl $name {
            $(
                $(#[$fmeta])*
                pub const fn $get(self) -> $repr {
                    (self.0 >> $lo) & (<$repr>::MAX >> (<$repr>::BITS - $len))
                }

                #[doc = concat!("The same value with another [`Self::", stringify!($get), "`].")]
                #[must_use]
                pub const fn $with(self, value: $repr) -> Self {
                    let mask = <$repr>::MAX >> (<$repr>::BITS - $len);
                    Self((self.0 & !(mask << $lo)) | ((value & mask) << $lo))
                }
            )*
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("raw", &format_args!("{:#x}", self.0))
                    $(.field(stringify!($get), &self.$get()))*
                    .finish()
            }
        }
    };
}
pub(crate) use bits;
