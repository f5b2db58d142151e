//! Image, compose file and systemd unit.
