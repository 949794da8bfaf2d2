//go:build tools

// Package tools keeps blackbox_exporter in go.mod: its program is built from here, never imported.
package tools

import (
	_ "github.com/prometheus/blackbox_exporter"
)
