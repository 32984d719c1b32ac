#include "Artifacts.h"
