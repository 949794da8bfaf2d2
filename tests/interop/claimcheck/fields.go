package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/nats-io/jwt/v2"
)

type member struct {
	Kind string `json:"kind"`
	// Members joined by dots, "[]" behind a list and "{}" behind a map, as in nats.exports[].revocations{}.
	Path string `json:"path"`
}

// Every member that claims may have, by the types of the library. The body of generic claims is free.
func listFields(lines *json.Encoder) error {
	bodies := []struct {
		kind string
		body any
	}{
		{jwt.OperatorClaim, jwt.OperatorClaims{}},
		{jwt.AccountClaim, jwt.AccountClaims{}},
		{jwt.UserClaim, jwt.UserClaims{}},
		{jwt.ActivationClaim, jwt.ActivationClaims{}},
		{jwt.AuthorizationRequestClaim, jwt.AuthorizationRequestClaims{}},
		{jwt.AuthorizationResponseClaim, jwt.AuthorizationResponseClaims{}},
	}
	for _, one := range bodies {
		for _, path := range paths("", reflect.TypeOf(one.body)) {
			if err := lines.Encode(member{one.kind, path}); err != nil {
				return err
			}
		}
	}
	return nil
}

var signingKeys = reflect.TypeOf(jwt.SigningKeys{})

func paths(at string, of reflect.Type) []string {
	// A map in Go, a list of texts and scopes in a token.
	if of == signingKeys {
		return append([]string{at + "[]"}, paths(at+"[]", reflect.TypeOf(jwt.UserScope{}))...)
	}
	switch of.Kind() {
	case reflect.Pointer:
		return paths(at, of.Elem())
	case reflect.Slice:
		return append([]string{at + "[]"}, paths(at+"[]", of.Elem())...)
	case reflect.Map:
		return append([]string{at + "{}"}, paths(at+"{}", of.Elem())...)
	case reflect.Struct:
		return pathsOfStruct(at, of)
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint64:
		return nil
	default:
		panic(fmt.Sprintf("no members are known of a %s: say them here", of))
	}
}

func pathsOfStruct(at string, of reflect.Type) []string {
	var found []string
	for index := range of.NumField() {
		field := of.Field(index)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" {
			found = append(found, paths(at, field.Type)...)
			continue
		}
		path := strings.TrimPrefix(at+"."+name, ".")
		found = append(append(found, path), paths(path, field.Type)...)
	}
	return found
}
