//! Functions that another process can be asked to run.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::panic;
use crate::codec::outcome::{Call, Failure};
use crate::codec::serde::{decode, encode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::image::{self, Entry};

/// A function that can be run in another process: a plain function, or a closure that
/// captures nothing, of up to eight arguments.
///
/// It is implemented for all of them; `Args` is the tuple of their arguments. What crosses
/// to the other process is the place of the function's code in this program, and the
/// encoded arguments. A closure that captures is refused when the program is compiled:
///
/// ```compile_fail
/// let factor = std::env::args().count();
/// bunshin::Process::start(move |number: usize| factor * number, (7usize,));
/// ```
///
/// # Examples
/// ```
/// fn power(base: u32, exponent: u32) -> u32 {
///     base.pow(exponent)
/// }
///
/// assert_eq!(bunshin::Process::start(power, (2, 10))?.result()?, 1024);
/// assert_eq!(bunshin::Process::start(|| "a closure".to_string(), ())?.result()?, "a closure");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Target<Args>: Copy + 'static {
    /// What the function returns.
    type Output;

    /// Calls the function.
    fn call(self, args: Args) -> Self::Output;
}

macro_rules! target {
    ($($arg:ident)*) => {
        impl<Function, Output, $($arg),*> Target<($($arg,)*)> for Function
        where
            Function: Fn($($arg),*) -> Output + Copy + 'static,
        {
            type Output = Output;

            #[allow(non_snake_case)]
            fn call(self, ($($arg,)*): ($($arg,)*)) -> Output {
                self($($arg),*)
            }
        }
    };
}

target!();
target!(A);
target!(A B);
target!(A B C);
target!(A B C D);
target!(A B C D E);
target!(A B C D E F);
target!(A B C D E F G);
target!(A B C D E F G H);

/// The place of the code that decodes arguments, runs `F` on them and encodes the result.
pub(crate) fn locate<F, Args>(_target: F) -> Result<u64>
where
    F: Target<Args>,
    F::Output: Serialize,
    Args: DeserializeOwned,
{
    locate_entry(run::<F, Args>)
}

/// The place of a function of this crate's.
pub(crate) fn locate_entry(entry: Entry<Call>) -> Result<u64> {
    image::offset_of(entry).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "the function lies in a shared library, where a child may not find it; \
             call it from a function of the program itself",
        )
    })
}

/// Finds a function by its place.
pub(crate) fn find(offset: u64) -> Option<Entry<Call>> {
    image::entry_at(offset)
}

/// Runs a target that does next to nothing.
pub(super) fn rehearse(call: &mut Call) {
    fn target(number: u64) -> u64 {
        number
    }
    if let Some(entry) = locate(target).ok().and_then(find) {
        entry(call);
    }
}

fn run<F, Args>(call: &mut Call)
where
    F: Target<Args>,
    F::Output: Serialize,
    Args: DeserializeOwned,
{
    let target = image::conjure::<F>();
    let result = panic::catch(call.is_quiet, || {
        decode::<Args>(call.input.as_bytes(), &mut call.incoming)
    });
    let arguments = match result {
        Ok(Ok(arguments)) => arguments,
        Ok(Err(error)) => return fail(call, &Failure::Arguments(error.to_string())),
        Err(failure) => return fail(call, &Failure::Arguments(said(failure))),
    };
    // What the arguments did not take, and the memory that the encoded form lies in.
    call.incoming = Default::default();
    let result = match panic::catch(call.is_quiet, || target.call(arguments)) {
        Ok(result) => result,
        Err(failure) => return fail(call, &failure),
    };
    finish(call, &result);
    // Dropping the result is the user's code too.
    let _ = panic::catch(call.is_quiet, move || drop(result));
}

/// Puts a result into the call.
pub(crate) fn finish<R: Serialize>(call: &mut Call, result: &R) {
    call.failed = false;
    call.output.clear();
    let (output, outgoing, is_quiet) = (&mut call.output, &mut call.outgoing, call.is_quiet);
    let encoded = panic::catch(is_quiet, || encode(result, output, outgoing));
    let failure = match encoded {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Failure::Result(error.to_string()),
        Err(failure) => Failure::Result(said(failure)),
    };
    fail(call, &failure);
}

/// Puts a failure into the call.
pub(crate) fn fail(call: &mut Call, failure: &Failure) {
    call.failed = true;
    call.outgoing.discard();
    call.output.clear();
    // Strings always encode.
    let _ = encode(failure, &mut call.output, &mut call.outgoing);
}

/// A failure in words.
pub(crate) fn said(failure: Failure) -> String {
    match failure {
        Failure::Panicked { message, location } => {
            format!(
                "panicked at {}: {message}",
                location.as_deref().unwrap_or("an unknown place")
            )
        }
        Failure::Arguments(message) | Failure::Result(message) => message,
    }
}
