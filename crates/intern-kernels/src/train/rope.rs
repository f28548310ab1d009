//! Rotary position embedding, half-rotate form: pair `i` is elements `i` and `i + D/2`.
//!
//! Su et al., 2021, as Hugging Face lays it out. Rotating by the negative angle is both the
//! inverse and, since a rotation is orthogonal, the backward pass.

use crate::multiversion;

multiversion! {
    /// Rotates one head (`D` elements) by the angles whose cosine and sine are given (`D/2` each),
    /// and multiplies by `scale`: `y = scale R(angle) x`.
    pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], scale: f32, y: &mut [f32]) {
        let half = cos.len();
        let (x1, x2) = x.split_at(half);
        let (y1, y2) = y.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (cos[i] * scale, sin[i] * scale);
            y1[i] = x1[i] * c - x2[i] * s;
            y2[i] = x2[i] * c + x1[i] * s;
        }
    }
}

multiversion! {
    /// The backward pass of [`rotate`]: `dx = scale R(-angle) dy`.
    pub fn rotate_back(dy: &[f32], cos: &[f32], sin: &[f32], scale: f32, dx: &mut [f32]) {
        let half = cos.len();
        let (y1, y2) = dy.split_at(half);
        let (x1, x2) = dx.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (cos[i] * scale, sin[i] * scale);
            x1[i] = y1[i] * c + y2[i] * s;
            x2[i] = y2[i] * c - y1[i] * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, random, weighted_sum};

    #[test]
    fn rotation_is_orthogonal_and_inverted_by_its_backward() {
        let angles = random(8, 1);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let (x, dy) = (random(16, 2), random(16, 3));
        let (mut y, mut back, mut dx) = (vec![0.0; 16], vec![0.0; 16], vec![0.0; 16]);
        rotate(&x, &cos, &sin, 1.0, &mut y);
        rotate_back(&y, &cos, &sin, 1.0, &mut back);
        assert_close(&back, &x, 1e-5);
        rotate_back(&dy, &cos, &sin, 1.0, &mut dx);
        // <dy, R x> = <R^T dy, x>
        assert!((weighted_sum(&y, &dy) - weighted_sum(&x, &dx)).abs() < 1e-4);
        assert_close(&[y[0], y[8]], &[x[0] * cos[0] - x[8] * sin[0], x[8] * cos[0] + x[0] * sin[0]], 1e-6);
    }
}
