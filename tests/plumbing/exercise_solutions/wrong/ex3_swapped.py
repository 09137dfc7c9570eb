"""Wrong: forward and reverse are exchanged."""

from exercise_solutions.reference import ex3_kl as right
from exercise_solutions.reference.ex3_kl import *

forward_kl, reverse_kl = right.reverse_kl, right.forward_kl
