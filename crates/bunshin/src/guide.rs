//! The pages of `docs/guide`: their programs run as doc tests.

#[doc = include_str!("../../../docs/guide/pool.md")]
mod pool {}
