package main

import (
	"encoding/json"
	"fmt"
	"math/rand"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

const kinds = 7

// Makes claims of every kind in turn. The same seed makes the same keys and fields; the library takes iat, and with it
// jti and the signature, from the clock.
type generator struct {
	random *rand.Rand
}

func generate(seed int64, count int, lines *json.Encoder) error {
	making := &generator{rand.New(rand.NewSource(seed))}
	for index := range count {
		claims, signer, err := making.claims(index % kinds)
		if err != nil {
			return err
		}
		making.fillStandard(claims.Claims())
		given := answer{Issues: []issue{}}
		if given.Token, err = claims.Encode(signer); err != nil {
			return fmt.Errorf("encode case %d: %w", index, err)
		}
		// As a reader sees it: what nobody could tell from the token does not count.
		given.Kind = string(claims.ClaimType())
		seen, err := decode(question{given.Token, given.Kind})
		if err != nil {
			return fmt.Errorf("decode case %d: %w", index, err)
		}
		if given.Claims, err = json.Marshal(seen); err != nil {
			return err
		}
		if err := lines.Encode(given); err != nil {
			return err
		}
	}
	return nil
}

func (g *generator) claims(kind int) (jwt.Claims, nkeys.KeyPair, error) {
	operator, account, user, server := nkeys.PrefixByteOperator, nkeys.PrefixByteAccount, nkeys.PrefixByteUser, nkeys.PrefixByteServer
	switch kind {
	case 0:
		claims := jwt.NewOperatorClaims(g.public(operator))
		g.fill(&claims.Operator)
		g.fillPlaces(&claims.Operator)
		return claims, g.pair(operator), nil
	case 1:
		claims := jwt.NewAccountClaims(g.public(account))
		g.fill(&claims.Account)
		if g.random.Intn(2) == 0 {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{}
		} else {
			claims.Limits.JetStreamTieredLimits = nil
		}
		return claims, g.pair(operator), nil
	case 2:
		claims := jwt.NewUserClaims(g.public(user))
		g.fill(&claims.User)
		return claims, g.pair(account), nil
	case 3:
		claims := jwt.NewActivationClaims(g.public(account))
		g.fill(&claims.Activation)
		return claims, g.pair(account), nil
	case 4:
		claims := jwt.NewAuthorizationRequestClaims(g.public(user))
		g.fill(&claims.AuthorizationRequest)
		return claims, g.pair(server), nil
	case 5:
		claims := jwt.NewAuthorizationResponseClaims(g.public(user))
		g.fill(&claims.AuthorizationResponse)
		return claims, g.pair(account), nil
	case 6:
		claims := jwt.NewGenericClaims(g.public(account))
		claims.Data = map[string]any{"accounts": g.list(), g.word(): g.random.Intn(100), "type": string(jwt.GenericClaim)}
		return claims, g.pair(operator), nil
	default:
		return nil, nil, fmt.Errorf("there are %d kinds, none is %d", kinds, kind)
	}
}

// The library signs no operator whose urls and version are not what they are called.
func (g *generator) fillPlaces(operator *jwt.Operator) {
	operator.AccountServerURL = fmt.Sprintf("https://host-%d.example/jwt/v1", g.random.Intn(100))
	operator.OperatorServiceURLs = jwt.StringList{}
	for range g.random.Intn(3) {
		operator.OperatorServiceURLs.Add(fmt.Sprintf("nats://host-%d.example:4222", g.random.Intn(100)))
	}
	operator.SystemAccount = g.public(nkeys.PrefixByteAccount)
	operator.AssertServerVersion = fmt.Sprintf("2.%d.%d", g.random.Intn(20), g.random.Intn(20))
	for index := range operator.SigningKeys {
		operator.SigningKeys[index] = g.public(nkeys.PrefixByteOperator)
	}
}

func (g *generator) fillStandard(standard *jwt.ClaimsData) {
	standard.Name, standard.Audience = g.word(), g.word()
	standard.Expires, standard.NotBefore = g.random.Int63n(1<<40), g.random.Int63n(1<<40)
}

func (g *generator) pair(prefix nkeys.PrefixByte) nkeys.KeyPair {
	var seed [32]byte
	for index := range seed {
		seed[index] = byte(g.random.Intn(256))
	}
	pair, err := nkeys.FromRawSeed(prefix, seed[:])
	if err != nil {
		panic(err)
	}
	return pair
}

func (g *generator) public(prefix nkeys.PrefixByte) string {
	public, err := g.pair(prefix).PublicKey()
	if err != nil {
		panic(err)
	}
	return public
}
