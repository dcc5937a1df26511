//! Container images on this device: imported from OCI image layouts, unpacked into layers that an overlay mount stacks.
//!
//! Owns `DIR/images`: what is there ([`store`]), how it gets there ([`import`], [`layout`], [`unpack`]) and what it is called
//! ([`mod@reference`]). Refuses the network (there is no pull: a device with no link runs what was brought to it) and mounting (the
//! runtime does that). Start reading at [`ImageStore`], then [`import::import`].
//!
//! Invariants: every blob's digest and size is checked while it is read; a layer's folder carries its final name only when it is
//! whole and on the disk; the index names only layers that are; nothing is written outside the folder of the layer at hand,
//! whatever its entries say; a layer that a pod uses is never removed, unless forced.

pub mod command;
mod error;
pub mod facts;
pub mod import;
pub mod layout;
pub mod poke;
pub mod reference;
pub mod store;
pub mod unpack;

pub use error::ImageError;
pub use facts::{Account, ImageFacts, ImageUser, Images};
pub use reference::{ParseError, Reference};
pub use store::ImageStore;
