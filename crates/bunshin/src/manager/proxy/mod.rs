//! Proxies: what clients hold of a server's objects.
//!
//! - `dict`, `list`, `namespace`, `value`: data.
//! - `lock`, `condition`, `semaphore`, `event`, `barrier`: for waiting on each other.
//! - `queue`: items from many to many.
//! - `pool`: a pool of workers that lives in the server.

pub(super) mod barrier;
pub(super) mod condition;
pub(super) mod dict;
pub(super) mod event;
pub(super) mod list;
pub(super) mod lock;
pub(super) mod namespace;
pub(super) mod pool;
pub(super) mod queue;
pub(super) mod semaphore;
pub(super) mod value;

/// What all proxies can do: be made, cloned, shown, and sent in messages.
macro_rules! proxy {
    ($name:ident $(<$($type:ident),+>)?) => {
        impl $(<$($type),+>)? $name $(<$($type),+>)? {
            #[allow(dead_code)]
            pub(in crate::manager) fn of(referent: $crate::manager::referent::Referent) -> Self {
                Self {
                    referent: std::sync::Arc::new(referent),
                    types: std::marker::PhantomData,
                }
            }

            #[allow(dead_code)]
            pub(in crate::manager) fn referent(&self) -> &$crate::manager::referent::Referent {
                &self.referent
            }
        }

        impl $(<$($type),+>)? Clone for $name $(<$($type),+>)? {
            fn clone(&self) -> Self {
                Self {
                    referent: std::sync::Arc::clone(&self.referent),
                    types: std::marker::PhantomData,
                }
            }
        }

        impl $(<$($type),+>)? std::fmt::Debug for $name $(<$($type),+>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(std::any::type_name::<Self>())
            }
        }

        impl $(<$($type),+>)? serde::Serialize for $name $(<$($type),+>)? {
            fn serialize<Z: serde::Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                use serde::ser::Error as _;
                let form = self.referent.depart().map_err(|error| {
                    Z::Error::custom($crate::codec::attachments::Outgoing::fail(error))
                })?;
                ($crate::codec::serde::tag::<Self>(), form).serialize(serializer)
            }
        }

        impl<'de, $($($type),+)?> serde::Deserialize<'de> for $name $(<$($type),+>)? {
            fn deserialize<Z: serde::Deserializer<'de>>(deserializer: Z) -> Result<Self, Z::Error> {
                use serde::de::Error as _;
                let (tag, form) = <(u32, $crate::manager::referent::Form)>::deserialize(deserializer)?;
                // Taken in any case, so that what came is let go of.
                let referent = $crate::manager::referent::Referent::arrive(form)
                    .map_err(Z::Error::custom)?;
                if tag != $crate::codec::serde::tag::<Self>() {
                    return Err(Z::Error::custom(format!(
                        "a proxy of another type arrived as {}",
                        std::any::type_name::<Self>()
                    )));
                }
                Ok(Self::of(referent))
            }
        }
    };
}
pub(super) use proxy;
