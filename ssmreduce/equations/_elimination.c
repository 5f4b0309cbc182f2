/* Equations of blocks in Schur form, state by state in compiled code: Hammarling's method, and Stein equations.

   For T upper triangular (complex) or quasi-triangular (real) and stable, and inputs B, it finds U upper
   triangular in

       T U U^H + U U^H T^H + B B^H = 0  (continuous)  or  T U U^H T^H - U U^H + B B^H = 0  (discrete),

   and with it S = U^-1 T U and M = U^-1 B, which stay bounded where U is singular. From the last state (or
   conjugate pair) upwards: its own equation gives u, s and m; then

       (T1 + s^H) x = -(T12 u + B1 m^H),        B1 <- B1 - x m                        (continuous),
       x - T1 x s^H = T12 u s^H + B1 m^H,       [x, B1] <- [T1 x + T12 u, B1] Q^H     (discrete)

   give the rest of its columns, and the inputs of the states that remain. Q is unitary with leading
   rows [s, m]. With the polar form s^H = J H and E = (I + H)^-1, a reflector of [s, m]^H + [J, 0]^H makes that

       B1 <- B1 - ((T1 x + T12 u) J + B1 m^H E) m.

   Above its diagonal blocks S is -M M^H (continuous); in discrete time S and M of the states together follow
   from those of each by the same reflectors.

   A real T keeps its pairs: u, s and m of one come from two complex states, turned real by a rotation, and a pair
   above a block is solved for as one complex state, by its left eigenvector. No entry of a Gramian is formed;
   squares are taken of scaled numbers alone.

   Without a compiler `hammarling` goes by complex states in Python. What this file buys, in the Hankel singular
   values of real dense systems in continuous time, as `benchmarks/core.py` prints: 0.14 instead of 1.1 ms at 20
   states, 4.2 instead of 11 ms at 100, and 13 instead of 100 ms for a batch of 200 systems with 8 states.

   Reference: Hammarling, IMA J. Numer. Anal. 2 (1982). */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <complex.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef double complex cplx;
typedef Py_ssize_t Index;

/* A matrix with contiguous columns; `step` numbers lie between the starts of two columns. */
typedef struct {
    double *at;
    Index rows, columns, step;
} Real;

typedef struct {
    cplx *at;
    Index rows, columns, step;
} Complex;

#define ENTRY(A, i, j) ((A).at[(i) + (j) * (A).step])

/* y <- y + factor x */
static void add_real(Index n, double factor, const double *restrict x, double *restrict y)
{
    for (Index i = 0; i < n; i++) y[i] += factor * x[i];
}

/* y <- y + the `count` leading columns of A times x */
static void add_columns(Index n, Real A, Index first, int count, const double x[2], double *restrict y)
{
    const double *restrict one = &ENTRY(A, 0, first), *restrict two = &ENTRY(A, 0, first + count - 1);
    if (count == 1) {
        add_real(n, x[0], one, y);
        return;
    }
    for (Index i = 0; i < n; i++) y[i] += x[0] * one[i] + x[1] * two[i];
}

static void add_complex(Index n, cplx factor, const cplx *restrict x, cplx *restrict y)
{
    const double re = creal(factor), im = cimag(factor);
    const double *restrict a = (const double *)x;
    double *restrict b = (double *)y;
    for (Index i = 0; i < n; i++) {
        b[2 * i] += re * a[2 * i] - im * a[2 * i + 1];
        b[2 * i + 1] += re * a[2 * i + 1] + im * a[2 * i];
    }
}

/* u^2 over |b|^2 of one state is the inverse square of this: -2 Re pole, or 1 - |pole|^2, which is rounded as
   1 - pole^2 where the pole is nearly real. */
static double decay(cplx pole, int discrete)
{
    const double re = fabs(creal(pole)), im = fabs(cimag(pole)), large = fmax(re, im), small = fmin(re, im);
    return sqrt(discrete ? (1.0 - large) * (1.0 + large) - small * small : -2.0 * creal(pole));
}

/* The factor u = |b| / rate of one state; its row b becomes m = b / u. */
static double normalise(double rate, Index m, cplx *row, Index step)
{
    double largest = 0.0, squares = 0.0;
    for (Index j = 0; j < m; j++) {
        largest = fmax(largest, fmax(fabs(creal(row[j * step])), fabs(cimag(row[j * step]))));
    }
    if (largest == 0.0) return 0.0;
    for (Index j = 0; j < m; j++) {
        const double re = creal(row[j * step]) / largest, im = cimag(row[j * step]) / largest;
        squares += re * re + im * im;
    }
    const double norm = sqrt(squares);
    for (Index j = 0; j < m; j++) {
        row[j * step] = CMPLX(creal(row[j * step]) / largest * (rate / norm),
                              cimag(row[j * step]) / largest * (rate / norm));
    }
    return largest * norm / rate;
}

static cplx times(cplx a, cplx b) /* without the tests for Inf of the operator */
{
    return CMPLX(creal(a) * creal(b) - cimag(a) * cimag(b), creal(a) * cimag(b) + cimag(a) * creal(b));
}

static cplx inverse(cplx a)
{
    const double re = creal(a), im = cimag(a); /* by the larger one, so that no square is taken */
    if (fabs(re) >= fabs(im)) {
        const double ratio = im / re, size = 1.0 / (re + im * ratio);
        return CMPLX(size, -ratio * size);
    }
    const double ratio = re / im, size = 1.0 / (re * ratio + im);
    return CMPLX(ratio * size, -size);
}

/* Solve the `k` = 1 or 2 equations K x = y, by rows; x replaces y. 0 where K is singular. Rows and columns are
   pivoted: pairs of different scaling make entries of very different size. */
static int solve_small(int k, const cplx K[4], cplx y[2])
{
    int pivot = 0;
    double largest = 0.0;
    for (int at = 0; at < k * k; at++) {
        const double size = fabs(creal(K[at])) + fabs(cimag(K[at]));
        if (size > largest) {
            largest = size;
            pivot = at;
        }
    }
    if (largest == 0.0) return 0;
    if (k == 1) {
        y[0] = cimag(K[0]) == 0.0 ? y[0] / creal(K[0]) : times(y[0], inverse(K[0]));
        return 1;
    }
    const int row = pivot / 2, column = pivot % 2;
    const cplx scale = inverse(K[pivot]), right = times(K[2 * row + 1 - column], scale);
    const cplx left = K[2 * (1 - row) + column], rest = K[2 * (1 - row) + 1 - column] - times(left, right);
    if (rest == 0.0) return 0;
    const cplx first = times(y[row], scale), second = times(y[1 - row] - times(left, first), inverse(rest));
    y[column] = first - times(right, second);
    y[1 - column] = second;
    return 1;
}

/* u, s and the rows m of a pair from complex ones: factor V, V^H S V and V^H m. V turns
   the larger row of the factor into [0, size]. The first row of [s, m], which rounding may have left nothing
   but its norm, takes the phase in which it is nearly real, and keeps its norm. Then a rotation makes u triangular. */
static void turn_real(const cplx factor[2][2], double u1, double u2, const cplx S[2][2], double rate, int discrete,
                      Index m, cplx *row, double u[4], double s[4])
{
    double sizes[2];
    for (int i = 0; i < 2; i++) sizes[i] = hypot(cabs(factor[i][0]), cabs(factor[i][1]));
    const int larger = sizes[1] >= sizes[0];
    const double size = sizes[larger];
    if (size == 0.0) { /* by underflow alone: both poles are reached through both states */
        memset(row, 0, 2 * m * sizeof(cplx));
        return;
    }
    const cplx v1 = conj(factor[larger][0]) / size, v2 = conj(factor[larger][1]) / size;
    const cplx V[2][2] = {{conj(v2), v1}, {-conj(v1), v2}};
    cplx turned[2][2], *m1 = row, *m2 = row + m;
    for (int j = 0; j < 2; j++) {
        const cplx one = S[0][0] * V[0][j] + S[0][1] * V[1][j], two = S[1][1] * V[1][j];
        for (int i = 0; i < 2; i++) turned[i][j] = conj(V[0][i]) * one + conj(V[1][i]) * two;
    }
    /* Either part of the first row may be rounding alone; both are taken relative to what they can be. */
    cplx square = turned[0][1] / (discrete ? 1.0 : cabs(S[0][0]));
    double length = 0.0, kept = 0.0, inner = 0.0;
    square *= square;
    for (Index j = 0; j < m; j++) {
        const cplx one = conj(V[0][0]) * m1[j] + conj(V[1][0]) * m2[j];
        m2[j] = creal(conj(V[0][1]) * m1[j] + conj(V[1][1]) * m2[j]);
        m1[j] = one / rate;
        square += m1[j] * m1[j];
        length += creal(m1[j]) * creal(m1[j]) + cimag(m1[j]) * cimag(m1[j]);
    }
    const cplx phase = square != 0.0 ? csqrt(square / cabs(square)) : 1.0;
    for (Index j = 0; j < m; j++) {
        m1[j] = creal(m1[j] * conj(phase));
        kept += creal(m1[j]) * creal(m1[j]);
    }
    s[0] = creal(turned[0][0]);
    s[1] = creal(turned[0][1] * conj(phase));
    s[2] = creal(turned[1][0] * phase);
    s[3] = creal(turned[1][1]);
    double factor_of_row = kept != 0.0 ? sqrt(length / kept) : 1.0;
    if (u1 == 0.0) { /* out of reach: free, as for one state */
        s[0] = discrete;
        s[1] = factor_of_row = 0.0;
    } else if (discrete) {
        factor_of_row = 1.0 / hypot(hypot(s[0], s[1]), rate * sqrt(kept));
        s[0] *= factor_of_row;
        s[1] *= factor_of_row;
    }
    for (Index j = 0; j < m; j++) {
        m1[j] *= rate * factor_of_row;
        inner += creal(m1[j]) * creal(m2[j]);
    }
    if (!discrete) s[1] = -s[2] - inner;

    /* det V = 1, and the determinant of the factor is u1 u2: the corner is known without a difference. */
    const double corner = u1 * (u2 / size), beside = creal(factor[1 - larger][0] * v1 + factor[1 - larger][1] * v2);
    u[1] = larger ? beside : size;
    u[3] = larger ? size : hypot(corner, beside);
    if (larger || u[3] == 0.0) {
        u[0] = larger ? corner : 0.0;
        return;
    }
    /* u is [0, size; -corner, beside] so far. */
    const double cosine = beside / u[3], sine = corner / u[3];
    u[0] = size * sine;
    u[1] = size * cosine;
    for (int i = 0; i < 2; i++) {
        const double one = s[2 * i], two = s[2 * i + 1];
        s[2 * i] = cosine * one + sine * two;
        s[2 * i + 1] = cosine * two - sine * one;
    }
    for (int j = 0; j < 2; j++) {
        const double one = s[j], two = s[2 + j];
        s[j] = cosine * one + sine * two;
        s[2 + j] = cosine * two - sine * one;
    }
    for (Index j = 0; j < m; j++) {
        const cplx one = m1[j], two = m2[j];
        m1[j] = cosine * one + sine * two;
        m2[j] = cosine * two - sine * one;
    }
}

/* u, s (2 x 2, by rows) and the rows m of a conjugate pair: two complex states in the Schur form of the pair,
   turned real by a rotation. `row` holds 2 m numbers. 0 where unstable. */
static int pair_factor(Real T, Index first, Real B, int discrete, cplx *row, double u[4], double s[4])
{
    const Index m = B.columns;
    const double a = ENTRY(T, first, first), b = ENTRY(T, first, first + 1);
    const double c = ENTRY(T, first + 1, first), d = ENTRY(T, first + 1, first + 1);
    memset(u, 0, 4 * sizeof(double));
    memset(s, 0, 4 * sizeof(double));
    s[0] = s[3] = discrete; /* where nothing reaches it s is free: unitary, or zero */
    double scale = 0.0;
    for (Index j = 0; j < m; j++) {
        scale = fmax(scale, fmax(fabs(ENTRY(B, first, j)), fabs(ENTRY(B, first + 1, j))));
    }
    if (scale == 0.0) return 1;

    const double half = 0.5 * (a - d);
    const cplx pole = CMPLX(0.5 * (a + d), sqrt(fmax(-(half * half + b * c), 0.0)));
    cplx x, y;
    if (fabs(b) >= fabs(c)) {
        x = b;
        y = pole - a;
    } else {
        x = pole - d;
        y = c;
    }
    const double size = hypot(cabs(x), cabs(y));
    x /= size;
    y /= size;
    /* q = [x, -conj(y); y, conj(x)] and the entry of q^H T q above its diagonal; what the poles have in common
       couples nothing, and its rounding need not. */
    const cplx above = half * -conj(y) + b * conj(x), below = c * -conj(y) - half * conj(x);
    const cplx coupling = conj(x) * above + conj(y) * below;
    cplx *m1 = row, *m2 = row + m;
    for (Index j = 0; j < m; j++) {
        const double b1 = ENTRY(B, first, j) / scale, b2 = ENTRY(B, first + 1, j) / scale;
        m1[j] = conj(x) * b1 + conj(y) * b2;
        m2[j] = -y * b1 + x * b2;
    }
    const double rate = decay(pole, discrete), modulus = cabs(pole);
    if (!(rate > 0.0)) return 0;
    const double u2 = normalise(rate, m, m2, 1);
    const cplx phase = discrete && modulus != 0.0 ? conj(pole) / modulus : 1.0;
    cplx u12, inner = 0.0, moved;
    for (Index j = 0; j < m; j++) inner += m1[j] * conj(m2[j]);
    if (discrete) {
        u12 = (coupling * u2 * pole + inner) / ((1.0 - pole) * (1.0 + pole));
        moved = conj(phase) * (pole * u12 + coupling * u2) + inner / (1.0 + modulus);
    } else {
        u12 = moved = -(coupling * u2 + inner) / (2.0 * pole);
    }
    for (Index j = 0; j < m; j++) m1[j] -= moved * m2[j];
    const double u1 = normalise(rate, m, m1, 1);
    inner = 0.0;
    for (Index j = 0; j < m; j++) inner += m1[j] * conj(m2[j]);
    for (Index j = 0; j < m && discrete; j++) m1[j] -= inner / (1.0 + modulus) * m2[j];

    const cplx factor[2][2] = {{x * u1, x * u12 - conj(y) * u2}, {y * u1, y * u12 + conj(x) * u2}};
    const cplx S[2][2] = {{pole, -phase * inner}, {0.0, conj(pole)}};
    turn_real(factor, u1, u2, S, rate, discrete, m, row, u, s);
    for (int i = 0; i < 4; i++) u[i] *= scale;
    return 1;
}

/* The leading `rows` = 1 or 2 states from `top` on as one complex state: z with (1, z) T = pole (1, z). Pairs are in
   LAPACK's standard form, with equal diagonal entries and b c < 0, or nearly so. */
static cplx left_vector(Real T, Index top, int rows, cplx *pole)
{
    const double a = ENTRY(T, top, top);
    *pole = a;
    if (rows == 1) return 0.0;
    const double b = ENTRY(T, top, top + 1), c = ENTRY(T, top + 1, top), half = 0.5 * (ENTRY(T, top + 1, top + 1) - a);
    const double frequency = half == 0.0 ? sqrt(fabs(b)) * sqrt(fabs(c)) : sqrt(fmax(-(half * half + b * c), 0.0));
    *pole = CMPLX(a + half, frequency);
    return CMPLX(half / c, frequency / c);
}

/* Solve T1 X + X s^H = -F (continuous) or X - T1 X s^H = F (discrete) for the leading rows and `k` = 1 or 2
   columns; X replaces F, and T1 X is added to `driven` in discrete time. 0 where singular. */
static int solve_above(Real T, int k, const double s[4], int discrete, Real F, Real driven)
{
    Index last = F.rows;
    while (last > 0) {
        const int rows = last > 1 && ENTRY(T, last - 1, last - 2) != 0.0 ? 2 : 1;
        const Index top = last - rows;
        cplx pole, K[4], y[2]; /* (pole + s) y = -(1, z) F, or (1 - pole s) y = (1, z) F, for y = (1, z) X */
        const cplx z = left_vector(T, top, rows, &pole);
        for (int j = 0; j < k; j++) {
            y[j] = rows == 2 ? ENTRY(F, top, j) + z * ENTRY(F, top + 1, j) : ENTRY(F, top, j);
            if (!discrete) y[j] = -y[j];
            for (int l = 0; l < k; l++) K[j * k + l] = discrete ? -pole * s[j * k + l] : s[j * k + l];
            K[j * k + j] += discrete ? 1.0 : pole;
        }
        if (rows == 2 && cimag(z) == 0.0) return 0;
        if (!solve_small(k, K, y)) return 0;
        double x[2][2];
        for (int j = 0; j < k; j++) {
            x[j][1] = rows == 2 ? cimag(y[j]) / cimag(z) : 0.0;
            x[j][0] = ENTRY(F, top, j) = creal(y[j]) - creal(z) * x[j][1];
            if (rows == 2) ENTRY(F, top + 1, j) = x[j][1];
            if (discrete) add_columns(last, T, top, rows, x[j], &ENTRY(driven, 0, j));
        }
        for (int j = 0; j < k; j++) {
            double step[2] = {x[j][0], x[j][1]};
            for (int i = 0; i < rows && discrete; i++) {
                step[i] = s[j * k] * x[0][i] + (k == 2 ? s[j * k + 1] * x[1][i] : 0.0);
            }
            add_columns(top, T, top, rows, step, &ENTRY(F, 0, j));
        }
        last = top;
    }
    return 1;
}

/* Solve T1 x + x conj(s) = x or x - T1 x conj(s) = x (the right-hand side) for the leading `rows` in place; T1 x
   is added to `driven` in discrete time. 0 where singular. */
static int solve_above_complex(Complex T, Index rows, cplx s, int discrete, cplx *x, cplx *driven)
{
    for (Index i = rows - 1; i >= 0; i--) {
        const cplx pivot = discrete ? 1.0 - conj(s) * ENTRY(T, i, i) : ENTRY(T, i, i) + conj(s);
        if (pivot == 0.0) return 0;
        x[i] /= pivot;
        if (discrete) {
            add_complex(i + 1, x[i], &ENTRY(T, 0, i), driven);
            add_complex(i, x[i] * conj(s), &ENTRY(T, 0, i), x);
        } else {
            add_complex(i, -x[i], &ENTRY(T, 0, i), x);
        }
    }
    return 1;
}

/* Solve X - T X S^H = F, with T and S in Schur form, from the last columns on; X replaces F, and TX, which is zero,
   becomes T X. 0 where singular. */
static int stein_real(Real T, Real S, Real X, Real TX)
{
    Index last = S.rows;
    while (last > 0) {
        const int k = last > 1 && ENTRY(S, last - 1, last - 2) != 0.0 ? 2 : 1;
        const Index first = last - k;
        double s[4] = {0.0};
        for (int i = 0; i < k; i++) {
            for (int j = 0; j < k; j++) s[i * k + j] = ENTRY(S, first + i, first + j);
            for (Index l = last; l < S.rows; l++) {
                add_real(T.rows, ENTRY(S, first + i, l), &ENTRY(TX, 0, l), &ENTRY(X, 0, first + i));
            }
        }
        const Real x = {&ENTRY(X, 0, first), T.rows, k, X.step};
        const Real driven = {&ENTRY(TX, 0, first), T.rows, k, TX.step};
        if (!solve_above(T, k, s, 1, x, driven)) return 0;
        last = first;
    }
    return 1;
}

static int stein_complex(Complex T, Complex S, Complex X, Complex TX)
{
    for (Index j = S.rows - 1; j >= 0; j--) {
        for (Index l = j + 1; l < S.rows; l++) {
            add_complex(T.rows, conj(ENTRY(S, j, l)), &ENTRY(TX, 0, l), &ENTRY(X, 0, j));
        }
        if (!solve_above_complex(T, T.rows, ENTRY(S, j, j), 1, &ENTRY(X, 0, j), &ENTRY(TX, 0, j))) return 0;
    }
    return 1;
}

/* Of s^H = J H, with J orthogonal and H symmetric: J and E = (I + H)^-1, by rows. */
static void polar(int k, const double s[4], double J[4], double E[4])
{
    if (k == 1) {
        J[0] = s[0] < 0.0 ? -1.0 : 1.0;
        E[0] = 1.0 / (1.0 + fabs(s[0]));
        return;
    }
    /* s has complex eigenvalues, or is the identity: its determinant is positive, and J a rotation. */
    const double size = hypot(s[0] + s[3], s[2] - s[1]);
    const double cosine = size != 0.0 ? (s[0] + s[3]) / size : 1.0;
    const double sine = size != 0.0 ? (s[1] - s[2]) / size : 0.0; /* s^H = [s0, s2; s1, s3] */
    J[0] = J[3] = cosine;
    J[1] = -sine;
    J[2] = sine;
    const double a = 1.0 + cosine * s[0] + sine * s[1], d = 1.0 - sine * s[2] + cosine * s[3];
    const double b = 0.5 * (cosine * s[2] + sine * s[3] - sine * s[0] + cosine * s[1]);
    const double determinant = a * d - b * b;
    E[0] = d / determinant;
    E[1] = E[2] = -b / determinant;
    E[3] = a / determinant;
}

/* S and M of the states together: from those of each, [0, M] Q for all that lie above it. */
static void cascade_real(Real T, Real S, Real M)
{
    Index first = T.rows > 1 && ENTRY(T, 1, 0) != 0.0 ? 2 : 1;
    while (first < T.rows) {
        const int k = first + 1 < T.rows && ENTRY(T, first + 1, first) != 0.0 ? 2 : 1;
        double s[4] = {0.0}, J[4], E[4];
        for (int i = 0; i < k; i++) {
            for (int j = 0; j < k; j++) s[i * k + j] = ENTRY(S, first + i, first + j);
        }
        polar(k, s, J, E);
        for (Index r = 0; r < first; r++) {
            double inner[2] = {0.0, 0.0};
            for (int j = 0; j < k; j++) {
                for (Index l = 0; l < M.columns; l++) inner[j] += ENTRY(M, r, l) * ENTRY(M, first + j, l);
            }
            for (int j = 0; j < k; j++) {
                double weight = 0.0;
                for (int l = 0; l < k; l++) {
                    ENTRY(S, r, first + j) -= inner[l] * J[j * k + l];
                    weight += inner[l] * E[l * k + j];
                }
                for (Index l = 0; l < M.columns; l++) ENTRY(M, r, l) -= weight * ENTRY(M, first + j, l);
            }
        }
        first += k;
    }
}

/* U, S, M of a real block; B is overwritten. Zero entries are expected in U and S. `row` holds 2 m complex
   numbers, `driven` and `reached` as many rows as T and two columns. 0 where the equation is singular. */
static int eliminate_real(Real T, Real B, Real U, Real S, Real M, int discrete, cplx *row, Real driven,
                          Real reached)
{
    Index last = T.rows;
    while (last > 0) {
        const int k = last > 1 && ENTRY(T, last - 1, last - 2) != 0.0 ? 2 : 1;
        const Index first = last - k;
        double u[4], s[4];
        if (k == 2) {
            memset(row, 0, 2 * B.columns * sizeof(cplx));
            if (!pair_factor(T, first, B, discrete, row, u, s)) return 0;
        } else {
            const double pole = ENTRY(T, first, first), rate = decay(pole, discrete);
            if (!(rate > 0.0)) return 0;
            for (Index j = 0; j < B.columns; j++) row[j] = ENTRY(B, first, j);
            u[0] = normalise(rate, B.columns, row, 1);
            s[0] = u[0] != 0.0 ? pole : discrete; /* free where nothing reaches it */
        }
        for (int i = 0; i < k; i++) {
            for (int j = 0; j < k; j++) {
                ENTRY(U, first + i, first + j) = u[i * k + j];
                ENTRY(S, first + i, first + j) = s[i * k + j];
            }
            for (Index j = 0; j < B.columns; j++) {
                ENTRY(M, first + i, j) = creal(row[i * B.columns + j]);
            }
        }
        if (first) {
            const Real X = {&ENTRY(U, 0, first), first, k, U.step};
            for (int j = 0; j < k; j++) { /* F = T12 u (or T12 u s^H) + B1 m^H, in place of X */
                double *moved = discrete ? &ENTRY(driven, 0, j) : &ENTRY(X, 0, j);
                memset(moved, 0, first * sizeof(double));
                for (int l = 0; l < k; l++) add_real(first, u[l * k + j], &ENTRY(T, 0, first + l), moved);
            }
            for (int j = 0; j < k; j++) {
                double *inner = &ENTRY(reached, 0, j);
                memset(inner, 0, first * sizeof(double));
                for (Index l = 0; l < B.columns; l++) {
                    add_real(first, ENTRY(M, first + j, l), &ENTRY(B, 0, l), inner);
                }
                for (int l = 0; l < k && discrete; l++) {
                    add_real(first, s[j * k + l], &ENTRY(driven, 0, l), &ENTRY(X, 0, j));
                }
                add_real(first, 1.0, inner, &ENTRY(X, 0, j));
            }
            if (discrete) {
                double J[4], E[4];
                polar(k, s, J, E);
                for (int j = 0; j < k; j++) { /* B1 <- B1 - (B1 m^H) E m */
                    for (Index l = 0; l < B.columns; l++) {
                        double weight = 0.0;
                        for (int h = 0; h < k; h++) weight += E[j * k + h] * ENTRY(M, first + h, l);
                        add_real(first, -weight, &ENTRY(reached, 0, j), &ENTRY(B, 0, l));
                    }
                }
                if (!solve_above(T, k, s, discrete, X, driven)) return 0;
                for (int j = 0; j < k; j++) {
                    for (Index l = 0; l < B.columns; l++) {
                        double weight = 0.0;
                        for (int h = 0; h < k; h++) weight += J[j * k + h] * ENTRY(M, first + h, l);
                        add_real(first, -weight, &ENTRY(driven, 0, j), &ENTRY(B, 0, l));
                    }
                }
            } else {
                if (!solve_above(T, k, s, discrete, X, driven)) return 0;
                for (int j = 0; j < k; j++) {
                    for (Index l = 0; l < B.columns; l++) {
                        add_real(first, -ENTRY(M, first + j, l), &ENTRY(X, 0, j), &ENTRY(B, 0, l));
                    }
                }
            }
        }
        last = first;
    }
    if (discrete) {
        cascade_real(T, S, M);
        return 1;
    }
    for (Index j = 1; j < T.rows; j++) { /* above the diagonal blocks S = -M M^H */
        const Index top = ENTRY(T, j, j - 1) != 0.0 ? j - 1 : j;
        for (Index l = 0; l < B.columns; l++) {
            add_real(top, -ENTRY(M, j, l), &ENTRY(M, 0, l), &ENTRY(S, 0, j));
        }
    }
    return 1;
}

/* The same for a complex block, whose T is triangular; `driven` and `reached` hold a number for every row. */
static int eliminate_complex(Complex T, Complex B, Complex U, Complex S, Complex M, int discrete,
                             cplx *driven, cplx *reached)
{
    for (Index k = T.rows - 1; k >= 0; k--) {
        for (Index j = 0; j < B.columns; j++) ENTRY(M, k, j) = ENTRY(B, k, j);
        const cplx pole = ENTRY(T, k, k);
        const double rate = decay(pole, discrete);
        if (!(rate > 0.0)) return 0;
        const double u = normalise(rate, B.columns, &ENTRY(M, k, 0), M.step);
        const cplx s = u != 0.0 ? pole : discrete; /* free where nothing reaches it */
        const double modulus = cabs(s);
        cplx *x = &ENTRY(U, 0, k);
        ENTRY(U, k, k) = u;
        ENTRY(S, k, k) = s;
        if (discrete) {
            memset(driven, 0, k * sizeof(cplx));
            add_complex(k, u, &ENTRY(T, 0, k), driven);
            add_complex(k, u * conj(s), &ENTRY(T, 0, k), x);
        } else {
            add_complex(k, -u, &ENTRY(T, 0, k), x);
        }
        memset(reached, 0, k * sizeof(cplx));
        for (Index l = 0; l < B.columns; l++) {
            add_complex(k, conj(ENTRY(M, k, l)), &ENTRY(B, 0, l), reached);
        }
        add_complex(k, discrete ? 1.0 : -1.0, reached, x);
        for (Index l = 0; l < B.columns && discrete; l++) { /* B1 <- B1 - (B1 m^H) E m */
            add_complex(k, -ENTRY(M, k, l) / (1.0 + modulus), reached, &ENTRY(B, 0, l));
        }
        if (!solve_above_complex(T, k, s, discrete, x, driven)) return 0;
        const cplx J = modulus != 0.0 ? conj(s) / modulus : 1.0;
        for (Index l = 0; l < B.columns; l++) {
            add_complex(k, -ENTRY(M, k, l) * (discrete ? J : 1.0), discrete ? driven : x, &ENTRY(B, 0, l));
        }
    }
    for (Index j = 1; j < T.rows; j++) {
        const cplx s = ENTRY(S, j, j);
        const double modulus = cabs(s);
        const cplx J = discrete && modulus != 0.0 ? conj(s) / modulus : 1.0;
        for (Index l = 0; l < B.columns; l++) {
            add_complex(j, -conj(ENTRY(M, j, l) * J), &ENTRY(M, 0, l), &ENTRY(S, 0, j));
        }
        for (Index i = 0; i < j && discrete; i++) { /* M of the states together */
            cplx inner = 0.0;
            for (Index l = 0; l < B.columns; l++) inner += ENTRY(M, i, l) * conj(ENTRY(M, j, l));
            inner /= 1.0 + modulus;
            for (Index l = 0; l < B.columns; l++) ENTRY(M, i, l) -= inner * ENTRY(M, j, l);
        }
    }
    return 1;
}

/* A matrix of doubles or complex doubles with contiguous columns. */
static int read_matrix(PyObject *object, Py_buffer *view, const char *format, int writable)
{
    if (PyObject_GetBuffer(object, view, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) {
        return 0;
    }
    if (view->ndim != 2 || strcmp(view->format, format) != 0 ||
        (view->shape[0] > 1 && view->shape[1] > 0 && view->strides[0] != view->itemsize) ||
        view->strides[1] % view->itemsize != 0) {
        PyErr_SetString(PyExc_ValueError, "expected matrices of one type with contiguous columns");
        PyBuffer_Release(view);
        return 0;
    }
    return 1;
}

static void release(Py_buffer *views, int count)
{
    for (int i = 0; i < count; i++) PyBuffer_Release(&views[i]);
}

/* Read `count` matrices of the type of the first, of which all but the `fixed` first are written to. 1 where they
   are real, 0 where complex, -1 with an exception set. */
static int read_matrices(PyObject *const *args, int count, int fixed, Py_buffer *views)
{
    if (PyObject_GetBuffer(args[0], &views[0], PyBUF_STRIDES | PyBUF_FORMAT)) return -1;
    const int real = strcmp(views[0].format, "d") == 0;
    PyBuffer_Release(&views[0]);
    for (int i = 0; i < count; i++) {
        if (!read_matrix(args[i], &views[i], real ? "d" : "Zd", i >= fixed)) {
            release(views, i);
            return -1;
        }
    }
    return real;
}

static int has_shape(const Py_buffer *view, Index rows, Index columns)
{
    return view->shape[0] == rows && view->shape[1] == columns;
}

static Real real_matrix(const Py_buffer *view)
{
    return (Real){view->buf, view->shape[0], view->shape[1], view->strides[1] / view->itemsize};
}

static Complex complex_matrix(const Py_buffer *view)
{
    return (Complex){view->buf, view->shape[0], view->shape[1], view->strides[1] / view->itemsize};
}

static PyObject *eliminate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "expected T, B, U, S, M and whether time is discrete");
        return NULL;
    }
    const int discrete = PyObject_IsTrue(args[5]);
    if (discrete < 0) return NULL;
    Py_buffer views[5];
    const int real = read_matrices(args, 5, 1, views);
    if (real < 0) return NULL;
    const Index n = views[0].shape[0], m = views[1].shape[1];
    const int fits = has_shape(&views[0], n, n) && has_shape(&views[1], n, m) && has_shape(&views[2], n, n) &&
                     has_shape(&views[3], n, n) && has_shape(&views[4], n, m);
    cplx *row = fits ? malloc((2 * m + 2 * n + 1) * sizeof(cplx)) : NULL;
    int solved = 0;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "expected T, U, S of shape (n, n) and B, M of shape (n, m)");
    } else if (row == NULL) {
        PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS
        if (real) {
            const Real driven = {(double *)(row + 2 * m), n, 2, n};
            const Real reached = {driven.at + 2 * n, n, 2, n};
            solved = eliminate_real(real_matrix(&views[0]), real_matrix(&views[1]), real_matrix(&views[2]),
                                    real_matrix(&views[3]), real_matrix(&views[4]), discrete, row, driven,
                                    reached);
        } else {
            solved = eliminate_complex(complex_matrix(&views[0]), complex_matrix(&views[1]),
                                       complex_matrix(&views[2]), complex_matrix(&views[3]),
                                       complex_matrix(&views[4]), discrete, row, row + n);
        }
        Py_END_ALLOW_THREADS
        free(row);
    }
    release(views, 5);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(solved);
}

static PyObject *stein(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "expected T, S, X and TX");
        return NULL;
    }
    Py_buffer views[4];
    const int real = read_matrices(args, 4, 2, views);
    if (real < 0) return NULL;
    const Index n = views[0].shape[0], k = views[1].shape[0];
    int solved = 0;
    if (!has_shape(&views[0], n, n) || !has_shape(&views[1], k, k) || !has_shape(&views[2], n, k) ||
        !has_shape(&views[3], n, k)) {
        PyErr_SetString(PyExc_ValueError, "expected T of shape (n, n), S of (k, k), and X, TX of (n, k)");
    } else {
        Py_BEGIN_ALLOW_THREADS
        if (real) {
            solved = stein_real(real_matrix(&views[0]), real_matrix(&views[1]), real_matrix(&views[2]),
                                real_matrix(&views[3]));
        } else {
            solved = stein_complex(complex_matrix(&views[0]), complex_matrix(&views[1]),
                                   complex_matrix(&views[2]), complex_matrix(&views[3]));
        }
        Py_END_ALLOW_THREADS
    }
    release(views, 4);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(solved);
}

static PyMethodDef methods[] = {
    {"eliminate", (PyCFunction)(void (*)(void))eliminate, METH_FASTCALL,
     "eliminate(T, B, U, S, M, discrete): fill U, S and M, overwrite B; False if the equation is singular."},
    {"stein", (PyCFunction)(void (*)(void))stein, METH_FASTCALL,
     "stein(T, S, X, TX): solve X - T X S^H = X in place, fill TX; False if the equation is singular."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_elimination", "Hammarling's method and Stein equations on blocks in Schur form.", 0, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__elimination(void)
{
    return PyModule_Create(&definition);
}
