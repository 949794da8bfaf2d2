package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nats-io/jwt/v2"
)

// A token is at most 1 MiB; a line also names the kind.
const lineBytesMax = 4 << 20

type question struct {
	Token string `json:"token"`
	Kind  string `json:"kind"`
}

type issue struct {
	Description string `json:"description"`
	Blocking    bool   `json:"blocking"`
	Time        bool   `json:"time"`
}

type answer struct {
	Kind   string          `json:"kind"`
	Token  string          `json:"token,omitempty"`
	Error  string          `json:"error,omitempty"`
	Claims json.RawMessage `json:"claims,omitempty"`
	Issues []issue         `json:"issues"`
	HashID string          `json:"hash_id,omitempty"`
}

func checkLines(in io.Reader, lines *json.Encoder) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 0, 64<<10), lineBytesMax)
	for scanner.Scan() {
		var asked question
		if err := json.Unmarshal(scanner.Bytes(), &asked); err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		if err := lines.Encode(check(asked)); err != nil {
			return err
		}
	}
	return scanner.Err()
}

func check(asked question) answer {
	given := answer{Kind: asked.Kind, Issues: []issue{}}
	claims, err := decode(asked)
	if err != nil {
		given.Error = err.Error()
		return given
	}
	given.describe(claims)
	return given
}

// The library's Decode verifies generic claims as if they were of version 1, so they have a door of their own.
func decode(asked question) (jwt.Claims, error) {
	if asked.Kind == jwt.GenericClaim {
		return jwt.DecodeGeneric(asked.Token)
	}
	claims, err := jwt.Decode(asked.Token)
	if err != nil {
		return nil, err
	}
	if kind := string(claims.ClaimType()); kind != asked.Kind {
		return nil, fmt.Errorf("asked for %q, is %q", asked.Kind, kind)
	}
	return claims, nil
}

// Validation fills in defaults, so the fields are written down before it. What cannot be written down or hashed is left
// out: validation says why.
func (given *answer) describe(claims jwt.Claims) {
	if fields, err := json.Marshal(claims); err == nil {
		given.Claims = fields
	}
	found := jwt.CreateValidationResults()
	claims.Validate(found)
	for _, one := range found.Issues {
		given.Issues = append(given.Issues, issue{one.Description, one.Blocking, one.TimeCheck})
	}
	if activation, ok := claims.(*jwt.ActivationClaims); ok {
		if hash, err := activation.HashID(); err == nil {
			given.HashID = hash
		}
	}
}
