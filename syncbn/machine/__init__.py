"""This machine's hardware and software, a proof that the layers are exact on it, and their cost. Imports only torch."""

from syncbn.machine.doctor import doctor
from syncbn.machine.report import DoctorReport

__all__ = ["DoctorReport", "doctor"]
