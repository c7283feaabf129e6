// All kernels as one piece, so that one call of the compiler makes them.
#include "adamw.cpp"
#include "attention.cpp"
#include "products.cpp"
#include "rows.cpp"
