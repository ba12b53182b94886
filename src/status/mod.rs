//! Outcomes turned into what people see. Pure.
