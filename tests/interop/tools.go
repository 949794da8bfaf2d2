//go:build tools

// Package tools keeps nsc in go.mod: its program is built from here, never imported.
package tools

import (
	_ "github.com/nats-io/nsc/v2"
)
