/* Hammarling's method on one block in Schur form, continuous time, state by state in compiled code.

   For T upper triangular (complex) or quasi-triangular (real) and stable, and inputs B, it finds U upper
   triangular with  T U U^H + U U^H T^H + B B^H = 0,  and with it S = U^-1 T U and M = U^-1 B, which stay
   bounded where U is singular. From the last state (or conjugate pair) upwards: its own equation gives u, s
   and m; then

       (T1 + s^H) x = -(T12 u + B1 m^H),      B1 <- B1 - x m

   give the rest of its columns, and the inputs of the states that remain; above its diagonal S is -M M^H.
   `small_gramians` holds the same in Python, which explains the steps and runs where this was not
   compiled. No entry of a Gramian is formed; squares are taken of scaled numbers alone.

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

/* The factor u = |b| / sqrt(-2 Re pole) of one state; its row b becomes m = b / u. */
static double normalise(double abscissa, Index m, cplx *row, Index step)
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
    const double norm = sqrt(squares), rate = sqrt(-2.0 * abscissa);
    for (Index j = 0; j < m; j++) {
        row[j * step] = CMPLX(creal(row[j * step]) / largest * (rate / norm),
                              cimag(row[j * step]) / largest * (rate / norm));
    }
    return largest * norm / rate;
}

/* Solve the system of `n` <= 4 equations A x = b, with row pivoting; 0 where A is singular. */
static int solve_small(int n, double A[4][4], double *b)
{
    for (int k = 0; k < n; k++) {
        int pivot = k;
        for (int i = k + 1; i < n; i++) {
            if (fabs(A[i][k]) > fabs(A[pivot][k])) pivot = i;
        }
        if (A[pivot][k] == 0.0) return 0;
        if (pivot != k) {
            for (int j = k; j < n; j++) {
                const double held = A[k][j];
                A[k][j] = A[pivot][j];
                A[pivot][j] = held;
            }
            const double held = b[k];
            b[k] = b[pivot];
            b[pivot] = held;
        }
        for (int i = k + 1; i < n; i++) {
            const double factor = A[i][k] / A[k][k];
            for (int j = k + 1; j < n; j++) A[i][j] -= factor * A[k][j];
            b[i] -= factor * b[k];
        }
    }
    for (int k = n - 1; k >= 0; k--) {
        for (int j = k + 1; j < n; j++) b[k] -= A[k][j] * b[j];
        b[k] /= A[k][k];
    }
    return 1;
}

/* u, s (2 x 2, by rows) and the rows m of a conjugate pair: two complex states in the Schur form of the pair,
   turned real by a rotation, as `_pair_factor` does it. `row` holds 2 m numbers of workspace. */
static void pair_factor(Real T, Index first, Real B, cplx *row, double u[4], double s[4])
{
    const Index m = B.columns;
    const double a = ENTRY(T, first, first), b = ENTRY(T, first, first + 1);
    const double c = ENTRY(T, first + 1, first), d = ENTRY(T, first + 1, first + 1);
    memset(u, 0, 4 * sizeof(double));
    memset(s, 0, 4 * sizeof(double));
    double scale = 0.0;
    for (Index j = 0; j < m; j++) {
        scale = fmax(scale, fmax(fabs(ENTRY(B, first, j)), fabs(ENTRY(B, first + 1, j))));
    }
    if (scale == 0.0) return;

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
    /* q = [x, -conj(y); y, conj(x)] and the entry of q^H T q above its diagonal */
    const cplx above = a * -conj(y) + b * conj(x), below = c * -conj(y) + d * conj(x);
    const cplx coupling = conj(x) * above + conj(y) * below;
    cplx *m1 = row, *m2 = row + m;
    for (Index j = 0; j < m; j++) {
        const double b1 = ENTRY(B, first, j) / scale, b2 = ENTRY(B, first + 1, j) / scale;
        m1[j] = conj(x) * b1 + conj(y) * b2;
        m2[j] = -y * b1 + x * b2;
    }
    const double u2 = normalise(creal(pole), m, m2, 1);
    cplx u12 = coupling * u2;
    for (Index j = 0; j < m; j++) u12 += m1[j] * conj(m2[j]);
    u12 /= -2.0 * pole;
    for (Index j = 0; j < m; j++) m1[j] -= u12 * m2[j];
    const double u1 = normalise(creal(pole), m, m1, 1);
    cplx inner = 0.0;
    for (Index j = 0; j < m; j++) inner += m1[j] * conj(m2[j]);

    const cplx top1 = x * u1, top2 = x * u12 - conj(y) * u2;
    const cplx low1 = y * u1, low2 = y * u12 + conj(x) * u2;
    const double bottom = hypot(cabs(low1), cabs(low2));
    if (bottom == 0.0) { /* by underflow alone: both poles are reached through both states */
        memset(row, 0, 2 * m * sizeof(cplx));
        return;
    }
    cplx V[2][2] = {{low2 / bottom, conj(low1) / bottom}, {-low1 / bottom, conj(low2) / bottom}};
    cplx square = 0.0;
    for (Index j = 0; j < m; j++) {
        const cplx entry = conj(V[0][0]) * m1[j] + conj(V[1][0]) * m2[j];
        square += entry * entry;
    }
    if (square != 0.0) {
        const cplx phase = csqrt(square / cabs(square));
        V[0][0] *= phase;
        V[1][0] *= phase;
    }
    /* S = V^H [pole, -inner; 0, conj(pole)] V */
    for (int j = 0; j < 2; j++) {
        const cplx first_row = pole * V[0][j] - inner * V[1][j], second_row = conj(pole) * V[1][j];
        for (int i = 0; i < 2; i++) {
            s[2 * i + j] = creal(conj(V[0][i]) * first_row + conj(V[1][i]) * second_row);
        }
    }
    for (Index j = 0; j < m; j++) {
        const cplx r1 = m1[j], r2 = m2[j];
        m1[j] = creal(conj(V[0][0]) * r1 + conj(V[1][0]) * r2);
        m2[j] = creal(conj(V[0][1]) * r1 + conj(V[1][1]) * r2);
    }
    u[0] = scale * (u1 * u2 / bottom);
    u[1] = scale * creal(top1 * V[0][1] + top2 * V[1][1]);
    u[3] = scale * bottom;
}

/* Solve (T1 + s^H) X = F for the `n` leading rows, `k` = 1 or 2 columns; X replaces F. 0 where singular. */
static int solve_above(Real T, Index n, int k, const double s[4], Real F)
{
    Index last = n;
    while (last > 0) {
        const int rows = last > 1 && ENTRY(T, last - 1, last - 2) != 0.0 ? 2 : 1;
        const Index top = last - rows;
        double A[4][4] = {{0.0}}, b[4];
        for (int j = 0; j < k; j++) {
            for (int i = 0; i < rows; i++) {
                const int at = j * rows + i;
                b[at] = ENTRY(F, top + i, j);
                for (int l = 0; l < rows; l++) A[at][j * rows + l] += ENTRY(T, top + i, top + l);
                for (int l = 0; l < k; l++) A[at][l * rows + i] += s[j * k + l];
            }
        }
        if (!solve_small(rows * k, A, b)) return 0;
        for (int j = 0; j < k; j++) {
            for (int i = 0; i < rows; i++) {
                ENTRY(F, top + i, j) = b[j * rows + i];
                add_real(top, -b[j * rows + i], &ENTRY(T, 0, top + i), &ENTRY(F, 0, j));
            }
        }
        last = top;
    }
    return 1;
}

/* U, S, M of a real block; B is overwritten. Zero entries are expected in U and S. 0 where singular. */
static int eliminate_real(Real T, Real B, Real U, Real S, Real M, cplx *row)
{
    Index last = T.rows;
    while (last > 0) {
        const int k = last > 1 && ENTRY(T, last - 1, last - 2) != 0.0 ? 2 : 1;
        const Index first = last - k;
        double u[4], s[4];
        if (k == 2) {
            memset(row, 0, 2 * B.columns * sizeof(cplx));
            pair_factor(T, first, B, row, u, s);
        } else {
            for (Index j = 0; j < B.columns; j++) row[j] = ENTRY(B, first, j);
            u[0] = normalise(ENTRY(T, first, first), B.columns, row, 1);
            s[0] = u[0] != 0.0 ? ENTRY(T, first, first) : 0.0; /* free where nothing reaches it */
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
            for (int j = 0; j < k; j++) {
                for (int l = 0; l < k; l++) {
                    add_real(first, -u[l * k + j], &ENTRY(T, 0, first + l), &ENTRY(X, 0, j));
                }
                for (Index l = 0; l < B.columns; l++) {
                    add_real(first, -ENTRY(M, first + j, l), &ENTRY(B, 0, l), &ENTRY(X, 0, j));
                }
            }
            if (!solve_above(T, first, k, s, X)) return 0;
            for (Index l = 0; l < B.columns; l++) {
                for (int j = 0; j < k; j++) {
                    add_real(first, -ENTRY(M, first + j, l), &ENTRY(X, 0, j), &ENTRY(B, 0, l));
                }
            }
        }
        last = first;
    }
    for (Index j = 1; j < T.rows; j++) { /* above the diagonal blocks S = -M M^H */
        const Index top = ENTRY(T, j, j - 1) != 0.0 ? j - 1 : j;
        for (Index l = 0; l < B.columns; l++) {
            add_real(top, -ENTRY(M, j, l), &ENTRY(M, 0, l), &ENTRY(S, 0, j));
        }
    }
    return 1;
}

/* The same for a complex block, whose T is triangular. */
static int eliminate_complex(Complex T, Complex B, Complex U, Complex S, Complex M)
{
    for (Index k = T.rows - 1; k >= 0; k--) {
        for (Index j = 0; j < B.columns; j++) ENTRY(M, k, j) = ENTRY(B, k, j);
        const double u = normalise(creal(ENTRY(T, k, k)), B.columns, &ENTRY(M, k, 0), M.step);
        const cplx s = u != 0.0 ? ENTRY(T, k, k) : 0.0;
        cplx *x = &ENTRY(U, 0, k);
        ENTRY(U, k, k) = u;
        ENTRY(S, k, k) = s;
        add_complex(k, -u, &ENTRY(T, 0, k), x);
        for (Index l = 0; l < B.columns; l++) {
            add_complex(k, -conj(ENTRY(M, k, l)), &ENTRY(B, 0, l), x);
        }
        for (Index i = k - 1; i >= 0; i--) {
            const cplx pivot = ENTRY(T, i, i) + conj(s);
            if (pivot == 0.0) return 0;
            x[i] /= pivot;
            add_complex(i, -x[i], &ENTRY(T, 0, i), x);
        }
        for (Index l = 0; l < B.columns; l++) {
            add_complex(k, -ENTRY(M, k, l), x, &ENTRY(B, 0, l));
        }
    }
    for (Index j = 1; j < T.rows; j++) {
        for (Index l = 0; l < B.columns; l++) {
            add_complex(j, -conj(ENTRY(M, j, l)), &ENTRY(M, 0, l), &ENTRY(S, 0, j));
        }
    }
    return 1;
}

/* T, B, U, S, M as matrices of doubles or complex doubles with contiguous columns, of matching shapes. */
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

static PyObject *eliminate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer views[5];
    int held = 0, solved = 0;
    (void)module;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "expected T, B, U, S and M");
        return NULL;
    }
    if (PyObject_GetBuffer(args[0], &views[0], PyBUF_STRIDES | PyBUF_FORMAT)) return NULL;
    const int real = strcmp(views[0].format, "d") == 0;
    PyBuffer_Release(&views[0]);
    while (held < 5 && read_matrix(args[held], &views[held], real ? "d" : "Zd", held > 0)) held++;
    if (held == 5) {
        const Index n = views[0].shape[0], m = views[1].shape[1];
        int fits = 1;
        for (int i = 0; i < 5; i++) {
            const int inputs = i == 1 || i == 4;
            fits = fits && views[i].shape[0] == n && views[i].shape[1] == (inputs ? m : n);
        }
        cplx *row = fits ? malloc((2 * m + 1) * sizeof(cplx)) : NULL;
        if (!fits) {
            PyErr_SetString(PyExc_ValueError, "expected T, U, S of shape (n, n) and B, M of shape (n, m)");
        } else if (row == NULL) {
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            if (real) {
                Real A[5];
                for (int i = 0; i < 5; i++) {
                    A[i] = (Real){views[i].buf, views[i].shape[0], views[i].shape[1],
                                  views[i].strides[1] / views[i].itemsize};
                }
                solved = eliminate_real(A[0], A[1], A[2], A[3], A[4], row);
            } else {
                Complex A[5];
                for (int i = 0; i < 5; i++) {
                    A[i] = (Complex){views[i].buf, views[i].shape[0], views[i].shape[1],
                                     views[i].strides[1] / views[i].itemsize};
                }
                solved = eliminate_complex(A[0], A[1], A[2], A[3], A[4]);
            }
            Py_END_ALLOW_THREADS
            free(row);
        }
    }
    for (int i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(solved);
}

static PyMethodDef methods[] = {
    {"eliminate", (PyCFunction)(void (*)(void))eliminate, METH_FASTCALL,
     "eliminate(T, B, U, S, M): fill U, S and M, overwrite B; False where the equation is singular."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_elimination", "Hammarling's method on one block.", 0, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__elimination(void)
{
    return PyModule_Create(&definition);
}
