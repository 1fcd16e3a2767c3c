//! Shared arrays as arrays of several dimensions.

use bytemuck::Pod;
use ndarray::{ArrayView, ArrayViewMut, Dimension, Shape, ShapeBuilder};

use super::ArrayGuard;
use crate::error::{Error, ErrorKind, Result};

/// Refuses shapes that do not have all elements; fewer would be taken, and too many overflow.
fn check<D: Dimension>(len: usize, shape: &Shape<D>) -> Result<()> {
    let asked = shape.raw_dim().size_checked();
    if asked == Some(len) {
        return Ok(());
    }
    let asked = asked.map_or("too many".to_owned(), |asked| asked.to_string());
    Err(mismatch(len, format!("its shape has {asked}")))
}

fn mismatch(len: usize, why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("view a shared array of {len} elements in another shape: {why}"),
    )
}

impl<T: Pod> ArrayGuard<'_, T> {
    /// The elements as an array of that shape, without copying. With the feature `ndarray`.
    ///
    /// # Shape and units
    /// Rows come one after the other, unless the shape says otherwise (`shape.f()`).
    ///
    /// # Errors
    /// `InvalidInput` if the shape has another number of elements.
    ///
    /// # Examples
    /// ```
    /// let numbers = bunshin::Array::from_slice(&[1, 2, 3, 4, 5, 6])?;
    /// let guard = numbers.lock()?;
    /// let rows = guard.view((2, 3))?;
    /// assert_eq!(rows.row(1).to_vec(), [4, 5, 6]);
    /// assert!(guard.view((2, 2)).is_err());
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn view<D: Dimension>(
        &self,
        shape: impl ShapeBuilder<Dim = D>,
    ) -> Result<ArrayView<'_, T, D>> {
        let shape = shape.into_shape_with_order();
        check(self.len(), &shape)?;
        ArrayView::from_shape(shape, self).map_err(|error| mismatch(self.len(), error))
    }

    /// As [`view`](Self::view), to write.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// ```
    /// let numbers = bunshin::Array::<f64>::new(6)?;
    /// numbers.lock()?.view_mut((2, 3))?.column_mut(2).fill(1.0);
    /// assert_eq!(numbers.to_vec()?, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    /// # Ok::<(), bunshin::Error>(())
    /// ```
    pub fn view_mut<D: Dimension>(
        &mut self,
        shape: impl ShapeBuilder<Dim = D>,
    ) -> Result<ArrayViewMut<'_, T, D>> {
        let shape = shape.into_shape_with_order();
        let len = self.len();
        check(len, &shape)?;
        ArrayViewMut::from_shape(shape, self).map_err(|error| mismatch(len, error))
    }
}
