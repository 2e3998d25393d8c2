"""What this machine has, a proof that the layers are exact on it, and what they cost there. Imports torch alone."""

from syncbn.machine.doctor import doctor
from syncbn.machine.report import DoctorReport

__all__ = ["DoctorReport", "doctor"]
