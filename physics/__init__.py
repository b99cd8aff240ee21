"""Response, resolution, closure and the gate: functions of arrays."""
