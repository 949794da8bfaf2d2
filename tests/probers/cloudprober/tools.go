//go:build tools

// Package tools keeps cloudprober in go.mod: its program is built from here, never imported.
package tools

import (
	_ "github.com/cloudprober/cloudprober/cmd/cloudprober"
)
