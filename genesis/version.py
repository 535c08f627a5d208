"""The version, in one place: the package, the build info metric and the tracer take it from here."""

VERSION = "0.2.0"
