//! Arithmetic in GF(2^8) as RAID6 has it: polynomial 0x11d, generator 2. Addition is xor.

const POLYNOMIAL: u16 = 0x11d;

/// Powers of the generator, and their inverse.
struct Tables {
    exp: [u8; 255],
    log: [u8; 256],
}

static TABLES: Tables = tables();

#[allow(
    clippy::indexing_slicing,
    reason = "evaluated while compiling: a bad index is an error then"
)]
#[allow(clippy::cast_possible_truncation, reason = "elements are below 256, exponents below 255")]
const fn tables() -> Tables {
    let mut tables = Tables { exp: [0; 255], log: [0; 256] };
    let mut element: u16 = 1;
    let mut power = 0;
    while power < 255 {
        tables.exp[power] = element as u8;
        tables.log[element as usize] = power as u8;
        element <<= 1;
        if element > 0xFF {
            element ^= POLYNOMIAL;
        }
        power += 1;
    }
    tables
}

/// The generator to the power of `n`.
pub(super) fn power(n: usize) -> u8 {
    TABLES.exp[n % 255]
}

pub(super) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    power(usize::from(TABLES.log[usize::from(a)]) + usize::from(TABLES.log[usize::from(b)]))
}

/// # Panics
/// For 0, which has no inverse.
pub(super) fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    power(255 - usize::from(TABLES.log[usize::from(a)]))
}

/// `sum += bytes`, element by element.
pub(super) fn add(sum: &mut [u8], bytes: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= byte;
    }
}

/// `sum += factor * bytes`, element by element.
pub(super) fn add_multiple(sum: &mut [u8], factor: u8, bytes: &[u8]) {
    let products = products(factor);
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= products[usize::from(*byte)];
    }
}

/// `bytes *= factor`, element by element.
pub(super) fn scale(bytes: &mut [u8], factor: u8) {
    let products = products(factor);
    for byte in bytes {
        *byte = products[usize::from(*byte)];
    }
}

fn products(factor: u8) -> [u8; 256] {
    let mut each = 0..=255;
    std::array::from_fn(|_| multiply(factor, each.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by shifts and additions, without tables.
    fn slowly(a: u8, b: u8) -> u8 {
        let mut sum = 0;
        let mut a = u16::from(a);
        for bit in 0..8 {
            if b & (1 << bit) != 0 {
                sum ^= a;
            }
            a <<= 1;
            if a > 0xFF {
                a ^= POLYNOMIAL;
            }
        }
        u8::try_from(sum).unwrap()
    }

    #[test]
    fn products_are_those_of_shifting_and_adding() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), slowly(a, b), "{a} * {b}");
            }
        }
    }

    #[test]
    fn an_element_times_its_inverse_is_one() {
        assert!((1..=255).all(|a| multiply(a, inverse(a)) == 1));
    }
}
