#!/bin/bash
# Compiles the erasure code for 64-bit Arm and runs its tests under qemu-user. Usage: scripts/neon.sh [DIR]   (what it makes and downloads)
#
# Needs aarch64-linux-gnu-gcc, qemu-aarch64 and libc6-dev-arm64-cross. The standard library for Arm is rustup's (`rustup target add
# aarch64-unknown-linux-gnu`) where it is installed. Otherwise Debian's compiler and library are unpacked into DIR: packages of one version, of
# which nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/neon}
target=aarch64-unknown-linux-gnu
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

debian() {
  local apt=(-qq -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o "Dir::State::Lists=$dir/apt/lists" -o "Dir::Cache=$dir/apt/cache")
  local std llvm
  mkdir -p "$dir"/apt/{lists,cache/archives}/partial "$dir/apt/packages"
  apt-get "${apt[@]}" update
  std=$(apt-cache "${apt[@]}" depends libstd-rust-web-dev:arm64 | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\).*/\1/p')
  llvm=$(apt-cache "${apt[@]}" depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p')
  [ -n "$std" ] && [ -n "$llvm" ] || { echo "no package libstd-rust-web-dev for arm64: rustup target add $target" >&2; return 1; }
  rm -f "$dir"/apt/packages/*.deb
  (cd "$dir/apt/packages" && apt-get "${apt[@]}" download rustc-web "$std" "$llvm" libstd-rust-web-dev:arm64)
  for package in "$dir"/apt/packages/*.deb; do dpkg -x "$package" "$dir/root"; done
  rm -r "$dir/apt"
}

if [ -d "$(rustc --print target-libdir --target $target)" ]; then
  rustc=(rustc)
else
  [ -e "$dir/unpacked" ] || { rm -rf "$dir/root"; debian; touch "$dir/unpacked"; }
  rustc=(env "LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu" "$dir/root/usr/bin/rustc")
fi
"${rustc[@]}" --version

# Not by cargo: the dependencies of the package are not needed, and some would have to be compiled by a C compiler.
compile() {
  "${rustc[@]}" --edition 2024 --target $target -D warnings -A linker_messages -C linker=aarch64-linux-gnu-gcc -C opt-level=2 -C debug-assertions=on \
    --out-dir "$dir" "$@"
}
compile --crate-name longshore_accel --crate-type rlib accel/tests/neon/lib.rs
compile --crate-name units --test accel/tests/neon/lib.rs
compile --crate-name erasure --test --extern "longshore_accel=$dir/liblongshore_accel.rlib" accel/tests/erasure.rs
for test in units erasure; do
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$dir/$test"
done
