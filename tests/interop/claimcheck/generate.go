package main

import (
	"encoding/json"
	"math/rand"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// What random claims are made of. The same seed makes the same claims, but for their iat.
type maker struct {
	random *rand.Rand
}

func generate(seed int64, count int, lines *json.Encoder) error {
	make := maker{rand.New(rand.NewSource(seed))}
	kinds := []func() (jwt.Claims, nkeys.KeyPair, error){}
	_ = make
	for index := 0; index < count && len(kinds) > 0; index++ {
		claims, signer, err := kinds[index%len(kinds)]()
		if err != nil {
			return err
		}
		token, err := claims.Encode(signer)
		if err != nil {
			return err
		}
		if err := lines.Encode(answer{Token: token}); err != nil {
			return err
		}
	}
	return nil
}
