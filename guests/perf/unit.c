// What the guest's gcc compiles: a lexer for C of some 900 lines from Debian's libstb-dev.
#define STB_C_LEXER_IMPLEMENTATION
#include <stb/stb_c_lexer.h>
