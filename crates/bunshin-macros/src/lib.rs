//! The attribute of [`bunshin`](https://docs.rs/bunshin) that makes a typed proxy of an
//! `impl` block. It is documented there, as `bunshin::managed`.

mod expand;

use proc_macro::TokenStream;

/// Makes a proxy type with the methods of an `impl` block, so that objects of the type can
/// live in a manager's server.
///
/// For `impl Counter`, the proxy is `CounterProxy`; another name is given as
/// `#[managed(Name)]`. It has, for every method that is not private:
///
/// - with `&self` or `&mut self`: a method of the same name with `&self` and the same
///   arguments, that gives `Result<R, CallError>` where the method gives `R`. It runs in the
///   server: those with `&self` side by side, those with `&mut self` alone.
/// - without `self`, but giving `Self`: a function of the same name that takes the
///   `&Manager` first, makes the object in its server, and gives the proxy.
///
/// Arguments and results cross as in any message: they are `serde`'s, and can be pipes, locks
/// and proxies. An argument may be `&str`, `&[T]` or `&T`; then the owned value crosses. A
/// result is owned. Private methods, and those that are `#[managed(skip)]`, stay out. The
/// `impl` block itself is left as it is, and the type can be generic, if its parameters are
/// `Serialize + DeserializeOwned + Send + Sync + 'static` where they are used so.
///
/// A method that panics gives `CallError::Panicked` to its caller; the object lives on, as the
/// method left it.
///
/// # Examples
/// ```
/// use bunshin::{Manager, Process};
///
/// struct Counter(i64);
///
/// #[bunshin::managed]
/// impl Counter {
///     pub fn new(start: i64) -> Self {
///         Self(start)
///     }
///     pub fn add(&mut self, n: i64) -> i64 {
///         self.0 += n;
///         self.0
///     }
///     pub fn get(&self) -> i64 {
///         self.0
///     }
/// }
///
/// let manager = Manager::new()?;
/// let counter = CounterProxy::new(&manager, 40)?;
/// let child = Process::start(
///     |counter: CounterProxy| counter.add(2).is_ok(),
///     (counter.clone(),),
/// )?;
/// assert!(child.result()?);
/// assert_eq!(counter.get()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[proc_macro_attribute]
pub fn managed(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::managed(attribute.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
