//! Shared arrays seen as arrays of several dimensions.
#![cfg(feature = "ndarray")]

mod support;

use bunshin::{Array, ErrorKind, Process};
use ndarray::{ArrayView2, Axis, Ix3, IxDyn, ShapeBuilder, arr2, s};

#[test]
fn children_change_parts_of_a_matrix_under_every_start_method() {
    support::each_method(|method| {
        let matrix = Array::<f64>::new(12).unwrap();
        let work = |matrix: Array<f64>, row: usize| {
            let mut guard = matrix.lock().expect("free");
            let mut view = guard.view_mut((3, 4)).expect("12 elements");
            view.index_axis_mut(Axis(0), row).fill(row as f64 + 1.0);
            view.sum()
        };
        for row in 0..3 {
            let child = Process::builder().start_method(method);
            let child = child.start(work, (matrix.clone(), row)).unwrap();
            let sums = [4.0, 12.0, 24.0];
            assert_eq!(child.result().expect("no panic"), sums[row]);
        }
        let guard = matrix.lock().unwrap();
        let view: ArrayView2<'_, f64> = guard.view((3, 4)).unwrap();
        assert_eq!(view.slice(s![.., 1]).to_vec(), [1.0, 2.0, 3.0]);
        assert_eq!(&guard[4..8], [2.0; 4]);
    });
}

#[test]
fn a_shape_has_all_elements_or_is_refused() {
    let _guard = support::guard(30);
    let array = Array::from_slice(&[1u8, 2, 3, 4, 5, 6]).unwrap();
    let mut guard = array.lock().unwrap();
    assert_eq!(guard.view((2, 3)).unwrap(), arr2(&[[1, 2, 3], [4, 5, 6]]));
    let columns = guard.view((2, 3).f()).unwrap();
    assert_eq!(columns, arr2(&[[1, 3, 5], [2, 4, 6]]));
    assert_eq!(guard.view(6).unwrap().sum(), 21);
    assert_eq!(guard.view(Ix3(1, 2, 3)).unwrap().ndim(), 3);
    assert_eq!(guard.view(IxDyn(&[3, 1, 2, 1])).unwrap().len(), 6);
    for shape in [
        vec![5],
        vec![7],
        vec![0],
        vec![2, 2],
        vec![],
        vec![usize::MAX, 2],
        vec![1 << 63, 4],
    ] {
        let error = guard.view(IxDyn(&shape)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{shape:?}: {error}");
        let error = guard.view_mut(IxDyn(&shape)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{shape:?}: {error}");
    }
    guard.view_mut((3, 2)).unwrap().row_mut(2).fill(0);
    drop(guard);
    assert_eq!(array.to_vec().unwrap(), [1, 2, 3, 4, 0, 0]);
    let empty = Array::<u8>::new(0).unwrap();
    assert_eq!(empty.lock().unwrap().view((0, 5)).unwrap().len(), 0);
}
