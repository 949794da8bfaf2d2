package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/nats-io/jwt/v2"
)

// Tokens that stand above each other.
type chain struct {
	Operator string `json:"operator"`
	Account  string `json:"account"`
	User     string `json:"user"`
}

// What the library says to each link, as servers and nsc ask it.
type trust struct {
	Account bool   `json:"account"`
	User    bool   `json:"user"`
	Reason  string `json:"reason,omitempty"`
}

func judgeChains(in io.Reader, lines *json.Encoder) error {
	decoder := json.NewDecoder(in)
	for {
		var asked chain
		if err := decoder.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a chain: %w", err)
		}
		judged, err := judge(asked)
		if err != nil {
			return err
		}
		if err := lines.Encode(judged); err != nil {
			return err
		}
	}
}

func judge(asked chain) (trust, error) {
	operator, err := jwt.DecodeOperatorClaims(asked.Operator)
	if err != nil {
		return trust{}, fmt.Errorf("decode the operator: %w", err)
	}
	account, err := jwt.DecodeAccountClaims(asked.Account)
	if err != nil {
		return trust{}, fmt.Errorf("decode the account: %w", err)
	}
	user, err := jwt.DecodeUserClaims(asked.User)
	if err != nil {
		return trust{}, fmt.Errorf("decode the user: %w", err)
	}
	judged := trust{Account: operator.DidSign(account), User: account.DidSign(user)}
	if scope, found := account.SigningKeys.GetScope(user.Issuer); found && scope != nil {
		if err := scope.ValidateScopedSigner(user); err != nil {
			judged.User, judged.Reason = false, err.Error()
		}
	}
	if account.IsClaimRevoked(user) {
		judged.User, judged.Reason = false, "revoked"
	}
	return judged, nil
}
