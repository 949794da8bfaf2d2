package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

type timing struct {
	Count           int     `json:"count"`
	SignSeconds     float64 `json:"sign_seconds"`
	DecodeSeconds   float64 `json:"decode_seconds"`
	ValidateSeconds float64 `json:"validate_seconds"`
	TokenBytes      int     `json:"token_bytes"`
}

// Accounts like those of a tenant: two imports, one export, three scoped keys.
func tenantAccount(key, core string, signers []string) *jwt.AccountClaims {
	account := jwt.NewAccountClaims(key)
	account.Name = "acme-corp"
	account.Limits.NatsLimits = jwt.NatsLimits{Subs: 1000, Data: jwt.NoLimit, Payload: 1 << 20}
	account.Limits.AccountLimits = jwt.AccountLimits{Imports: 2, Exports: 1, WildcardExports: true, Conn: 50, LeafNodeConn: 5}
	account.Imports.Add(
		&jwt.Import{Name: "up", Subject: jwt.Subject("t." + key + ".up.>"), LocalSubject: "up.>", Account: core, Type: jwt.Service},
		&jwt.Import{Name: "down", Subject: jwt.Subject("t." + key + ".down.>"), LocalSubject: "down.>", Account: core, Type: jwt.Stream},
	)
	account.Exports.Add(&jwt.Export{Name: "live", Subject: "live.>", Type: jwt.Stream})
	for index, signer := range signers {
		scope := jwt.NewUserScope()
		scope.Key = signer
		scope.Role = fmt.Sprintf("role-%d", index)
		scope.Template.Pub.Allow.Add("up.{{tag(site)}}.fwd.results", "live.{{tag(site)}}.*.results", "$JS.API.>")
		scope.Template.Sub.Allow.Add("_INBOX_{{tag(site)}}.>", "down.{{tag(site)}}.>")
		account.SigningKeys.AddScopedSigner(scope)
	}
	return account
}

func publicKeys(count int) ([]string, error) {
	keys := make([]string, count)
	for index := range keys {
		pair, err := nkeys.CreateAccount()
		if err != nil {
			return nil, err
		}
		if keys[index], err = pair.PublicKey(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func measure(count int, lines *json.Encoder) error {
	operator, err := nkeys.CreateOperator()
	if err != nil {
		return err
	}
	keys, err := publicKeys(5)
	if err != nil {
		return err
	}
	tokens := make([]string, count)
	taken := timing{Count: count}
	start := time.Now()
	for index := range tokens {
		if tokens[index], err = tenantAccount(keys[0], keys[1], keys[2:]).Encode(operator); err != nil {
			return err
		}
	}
	taken.SignSeconds = time.Since(start).Seconds()
	decoded := make([]*jwt.AccountClaims, count)
	start = time.Now()
	for index, token := range tokens {
		if decoded[index], err = jwt.DecodeAccountClaims(token); err != nil {
			return err
		}
		taken.TokenBytes = len(token)
	}
	taken.DecodeSeconds = time.Since(start).Seconds()
	start = time.Now()
	for _, claims := range decoded {
		found := jwt.CreateValidationResults()
		claims.Validate(found)
		if found.IsBlocking(true) {
			return fmt.Errorf("an account of the measurement is not valid: %v", found.Errors())
		}
	}
	taken.ValidateSeconds = time.Since(start).Seconds()
	return lines.Encode(taken)
}
